"""The training objective (Section 2.3): the three losses of Eq. 7, 8 and 9, and their weighted sum, Eq. 10."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from spheregen.component import Options
from spheregen.interfaces import Conditioner, PerceptualDistance
from spheregen.model import SphereModel
from spheregen.sphere import perturb, spherify


class LossWeights(Options):
    """The weights of the loss terms (Appendix D). A weight of 0 leaves its term, and its cost, out."""

    reconstruction_l1: float = Field(1.0, ge=0)
    """Smooth L1 between D(v_noisy) and x (Eq. 7)."""
    reconstruction_perceptual: float = Field(1.0, ge=0)
    """Perceptual distance between D(v_noisy) and x (Eq. 7)."""
    consistency_l1: float = Field(0.5, ge=0)
    """Smooth L1 between D(v_NOISY) and D(v_noisy) (Eq. 8)."""
    consistency_perceptual: float = Field(0.5, ge=0)
    """Perceptual distance between D(v_NOISY) and D(v_noisy) (Eq. 8)."""
    latent_consistency: float = Field(0.1, ge=0)
    """1 − cosine between v and E(D(v_NOISY)) (Eq. 9)."""


@dataclass
class Draws:
    """The random part of a training step, a row an image.

    r, r_sub: noise magnitudes as shares of σ_max (`sphere.draw_radii`); drop_encoder, drop_decoder: uniform numbers
    that decide where each network sees the null class; e: the noise direction [B, N, D]; generator: for what a
    regularizer draws, the same on all processes.
    """

    r: Tensor
    r_sub: Tensor
    drop_encoder: Tensor
    drop_decoder: Tensor
    e: Tensor
    generator: torch.Generator


def unit_range(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], the range in which losses compare images."""
    return (images + 1) / 2


def smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    """Smooth L1 of images in [0, 1], beta 1, a value an image: [B]."""
    return F.smooth_l1_loss(a, b, reduction="none").flatten(1).mean(1)


class Objective(nn.Module):
    """Images, labels and draws to the loss and its terms. One module, so that it can be wrapped for many processes."""

    def __init__(
        self,
        model: SphereModel,
        conditioner: Conditioner,
        weights: LossWeights,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.conditioner = conditioner
        self.weights = weights
        self.perceptual = perceptual

    def forward(self, x: Tensor, labels: Tensor | None, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, C, H, W] in [-1, 1], labels [B] or None -> the loss, a scalar, and its unweighted terms, detached.

        Each network sees its own dropped labels, the same in every pass of the step, so that both sides of a
        consistency loss are under one condition.
        """
        model, weights = self.model, self.weights
        null = model.shape.null_label
        y_encoder = self.conditioner.drop(labels, draws.drop_encoder, null)
        y_decoder = self.conditioner.drop(labels, draws.drop_decoder, null)

        # Eq. 1, 4 and 6: large and small noise share the direction e.
        z = model.encode(x, y_encoder)
        v = spherify(z)
        sigma_max = model.noise.sigma_max
        v_NOISY = perturb(v, draws.r * sigma_max, draws.e)
        v_noisy = perturb(v, draws.r_sub * sigma_max, draws.e)

        # Both decodings in one batch of 2B.
        y_both = None if y_decoder is None else torch.cat([y_decoder, y_decoder])
        x_NOISY, x_noisy = model.decode(torch.cat([v_NOISY, v_noisy]), y_both).float().chunk(2)

        terms: dict[str, Tensor] = {}
        images, image_NOISY, image_noisy = unit_range(x), unit_range(x_NOISY), unit_range(x_noisy)
        # Eq. 7, pixel reconstruction, and Eq. 8, pixel consistency with a stop-gradient on the target.
        if weights.reconstruction_l1:
            terms["reconstruction_l1"] = smooth_l1(image_noisy, images)
        if weights.consistency_l1:
            terms["consistency_l1"] = smooth_l1(image_NOISY, image_noisy.detach())
        if self.perceptual is not None and (weights.reconstruction_perceptual or weights.consistency_perceptual):
            features_noisy = self.perceptual.features(image_noisy)
            if weights.reconstruction_perceptual:
                with torch.no_grad():
                    features = self.perceptual.features(images)
                terms["reconstruction_perceptual"] = self.perceptual.distance(features_noisy, features)
            if weights.consistency_perceptual:
                features_NOISY = self.perceptual.features(image_NOISY)
                target = [f.detach() for f in features_noisy]
                terms["consistency_perceptual"] = self.perceptual.distance(features_NOISY, target)
        # Eq. 9, latent consistency: the encoder pulls the distorted image's latent back to the clean one's.
        if weights.latent_consistency:
            z_NOISY = model.encode(x_NOISY, y_encoder)
            cosine = F.cosine_similarity(z.detach().flatten(1).float(), z_NOISY.flatten(1).float(), dim=1)
            terms["latent_consistency"] = 1 - cosine

        # Eq. 10.
        means = {name: term.mean() for name, term in terms.items()}
        loss = sum((getattr(weights, name) * mean for name, mean in means.items()), x.new_zeros(()))
        if (extra := model.regularizer.loss(z, draws.generator)) is not None:
            means["regularizer"] = extra
            loss = loss + extra
        return loss, {"loss": loss.detach(), **{name: mean.detach() for name, mean in means.items()}}
