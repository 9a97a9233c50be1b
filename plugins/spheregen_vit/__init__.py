"""The paper's networks: a ViT with MLP-Mixers at the sphere's side (Section 2.4 and Appendix D)."""

from __future__ import annotations

import spheregen
from spheregen_vit.networks import ViTMixerDecoder, ViTMixerEncoder


@spheregen.hookimpl
def spheregen_components() -> list[type[spheregen.Component]]:
    return [ViTMixerEncoder, ViTMixerDecoder]
