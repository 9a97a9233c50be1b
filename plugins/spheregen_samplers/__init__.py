"""Samplers: the strength of the noise over the steps (Section 6, Eq. 13), how it is drawn, and the prior (C.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import spheregen


class SamplerOptions(spheregen.Options):
    r: float = Field(1.0, ge=0)
    """Noise strength: σ = r·σ_max at the first re-encoding (Eq. 5)."""
    noise: Literal["shared", "shared-prior", "independent"] = "shared"
    """shared: drawn at the first re-encoding and kept; shared-prior: the first latent's own draw is kept;
    independent: drawn anew at every step."""
    truncation: float | None = Field(None, gt=0)
    """The prior is a Gaussian truncated to [-truncation, truncation] (Appendix C.6); unset, a plain Gaussian."""


class FixedSampler(spheregen.Sampler, name="fixed"):
    """The same strength r at every step: γ = 0 in Eq. 13, the paper's best."""

    Options = SamplerOptions

    def prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        a = self.options.truncation
        if a is None:
            return super().prior(shape, generators)
        rows = [nn.init.trunc_normal_(torch.empty(*shape, device=g.device), a=-a, b=a, generator=g) for g in generators]
        return torch.stack(rows)

    def strength(self, step: int, steps: int) -> float:
        return self.options.r

    def noise(
        self, shape: Sequence[int], generators: Sequence[torch.Generator], previous: Tensor | None, first: Tensor | None
    ) -> Tensor:
        if self.options.noise != "independent" and previous is not None:
            return previous
        if self.options.noise == "shared-prior" and first is not None:
            return first
        return spheregen.rng.normal(shape, generators)


class DecaySampler(FixedSampler, name="decay"):
    """Strength that falls over the steps t = 2…T: r·(1 − (t−1)/(T−1))^γ (Eq. 13); the last step is noiseless."""

    class Options(SamplerOptions):
        gamma: float = Field(1.0, ge=0)
        """γ of Eq. 13; 0 is the fixed schedule."""

    def strength(self, step: int, steps: int) -> float:
        return self.options.r * (1 - (step - 1) / (steps - 1)) ** self.options.gamma


@spheregen.hookimpl
def spheregen_components() -> list[type[spheregen.Component]]:
    return [FixedSampler, DecaySampler]
