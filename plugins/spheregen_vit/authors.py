"""The names that the paper's authors' training code gives to these networks' tensors.

Shapes and conventions are the same on both sides (AdaLN's order of shift, scale and gate; q, k, v; SwiGLU's halves;
RoPE's pairs; the order of a linear head's channels), so that renaming is all there is to do; tests/test_import.py
computes both networks from the conventions alone and compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Ours → theirs, applied in this order to every name.
_COMMON = (
    (r"\badaln\.linear\.", "adaLN_modulation.1."),
    (r"\btoken_mlp\.fc1\.", "tok_mixer.mix.0."),
    (r"\btoken_mlp\.fc2\.", "tok_mixer.mix.2."),
    (r"\bchannel_mlp\.fc1\.", "chn_mixer.mix.0."),
    (r"\bchannel_mlp\.fc2\.", "chn_mixer.mix.2."),
    (r"\bmlp\.fc1\.", "mlp.w12."),
    (r"\bmlp\.fc2\.", "mlp.w3."),
    (r"\bgate([12])$", r"alpha\1"),
    (r"^head\.", "ffn."),
    (r"^vit\.classes\.", "y_embedder.embedding_table."),
    (r"^vit\.blocks\.", "blocks."),
)
_ENCODER = ((r"^stem\.", "x_embedder."), (r"^mixer\.", "out."))
_DECODER = (
    (r"^stem\.", "x_embedder.0."),
    (r"^mixer\.", "x_embedder.1."),
    (r"^pixels\.conv\.", "out.2."),  # linear head
    (r"^pixels\.layers\.1\.", "out.2."),  # conv head
    (r"^pixels\.layers\.3\.", "out.4."),
)


def authors_names(kind: str, ours: Iterable[str], mixer_depth: int) -> dict[str, str]:
    """Their name for each of our names in a network of a kind ("encoder" or "decoder")."""
    # A Mixer is one sequence here, blocks then norm, and two members there.
    mixer = ((rf"^mixer\.{mixer_depth}\.", "mixer.norm."), (r"^mixer\.(\d+)\.", r"mixer.blocks.\1."))
    rules = (*mixer, *_COMMON, *(_ENCODER if kind == "encoder" else _DECODER))
    names = {}
    for name in ours:
        theirs = name
        for pattern, replacement in rules:
            theirs = re.sub(pattern, replacement, theirs)
        names[name] = theirs
    return names
