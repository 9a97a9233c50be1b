"""Conditioners: classifier-free guidance after the encoder (latent), after the decoder (pixel), or both (combo).

Section 2.4, Algorithm 1 and Appendix C.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import spheregen

Pass = Callable[[Tensor, Tensor | None], Tensor]


def guided(network: Pass, x: Tensor, labels: Tensor, null_label: int, scale: float) -> Tensor:
    """Algorithm 1: uncond + scale·(cond − uncond), both branches in one batch of 2B labels for B inputs."""
    null = torch.full_like(labels, null_label)
    both = network(x, torch.cat([labels, null]))
    cond, uncond = both[: x.shape[0]], both[x.shape[0] :]  # not chunk(2): torch.export would fix the batch's size
    return uncond + scale * (cond - uncond)


class NoGuidance(spheregen.Conditioner, name="none"):
    """Labels condition both networks; nothing is guided."""

    class Options(spheregen.Options):
        dropout: float = Field(0.1, ge=0, le=1)
        """How often training replaces a label by the null class."""
        scale: float = 1.0
        """Guidance scale; 1 is no guidance."""

    def drop(self, labels: Tensor | None, uniform: Tensor, null_label: int) -> Tensor | None:
        if labels is None:
            return None
        return torch.where(uniform < self.options.dropout, null_label, labels)


class Guidance(NoGuidance):
    """Guidance at the places that a subclass names, each with `place_scale`."""

    guides_encoder = False
    guides_decoder = False

    @property
    def place_scale(self) -> float:
        return self.options.scale

    @property
    def encoder_passes(self) -> int:
        return 2 if self.guides_encoder and self.place_scale != 1 else 1

    @property
    def decoder_passes(self) -> int:
        return 2 if self.guides_decoder and self.place_scale != 1 else 1

    def encode(self, encoder: Pass, images: Tensor, labels: Tensor | None, null_label: int) -> Tensor:
        if labels is None or self.encoder_passes == 1:
            return encoder(images, labels)
        return guided(encoder, images, labels, null_label, self.place_scale)

    def decode(self, decoder: Pass, latents: Tensor, labels: Tensor | None, null_label: int) -> Tensor:
        """Guided images may leave the range of the pixels and are clamped to [-1, 1]."""
        if labels is None or self.decoder_passes == 1:
            return decoder(latents, labels)
        return guided(decoder, latents, labels, null_label, self.place_scale).clamp(-1, 1)


class LatentGuidance(Guidance, name="latent"):
    """Guides the encoder's output."""

    Options = NoGuidance.Options
    guides_encoder = True


class PixelGuidance(Guidance, name="pixel"):
    """Guides the decoder's images."""

    Options = NoGuidance.Options
    guides_decoder = True


class ComboGuidance(Guidance, name="combo"):
    """Guides both, each with √s for an overall scale s (Appendix C.1)."""

    class Options(NoGuidance.Options):
        scale: float = Field(1.0, ge=0)
        """Overall guidance scale s; each place takes √s. 1 is no guidance."""

    guides_encoder = True
    guides_decoder = True

    @property
    def place_scale(self) -> float:
        return math.sqrt(self.options.scale)


class Unconditional(spheregen.Conditioner, name="unconditional"):
    """A model without classes: labels are ignored and the networks have no class table."""

    conditional = False

    def drop(self, labels: Tensor | None, uniform: Tensor, null_label: int) -> None:
        return None

    def encode(self, encoder: Any, images: Tensor, labels: Tensor | None, null_label: int) -> Tensor:
        return encoder(images, None)

    def decode(self, decoder: Any, latents: Tensor, labels: Tensor | None, null_label: int) -> Tensor:
        return decoder(latents, None)


@spheregen.hookimpl
def spheregen_components() -> list[type[spheregen.Component]]:
    return [NoGuidance, LatentGuidance, PixelGuidance, ComboGuidance, Unconditional]
