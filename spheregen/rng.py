"""Random numbers that depend on a seed and on what they are for, never on what was drawn before.

Every image has its own generator, so that a training step or a sample is the same whatever the batch size, the
number of processes or the point at which the run was resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def stream(seed: int, purpose: str) -> int:
    """Where the seeds of the stream begin that `seed` and `purpose` name; item i has the seed stream + i."""
    # 62 bits, so that adding an index stays within int64.
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()) >> 2


def generator(seed: int, purpose: str, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of item `index` of a stream."""
    return torch.Generator(device).manual_seed(stream(seed, purpose) + index)


def generators(
    seed: int, purpose: str, indices: Iterable[int], device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator an item of a stream."""
    start = stream(seed, purpose)
    return [torch.Generator(device).manual_seed(start + index) for index in indices]


def normal(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard Gaussian noise [B, *shape], the i-th row drawn from the i-th of B generators, on their device."""
    return torch.stack([torch.randn(*shape, generator=g, device=g.device) for g in generators])
