"""The geometry of the paper (Sections 2.1, 2.2, 6 and C.2): the sphere of radius √L, and noise upon it.

A latent is any float tensor [B, ...]; the sphere lies in all dimensions but the first, flattened to L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# A latent whose root mean square is below this has no direction to speak of: it is enlarged by at most 1 / _FLOOR, so
# that the gradient stays bounded where an encoder starts from zero.
_FLOOR = 1e-3


def spherify(z: Tensor) -> Tensor:
    """Eq. 1: v = f(z), the flattened latent projected onto the sphere of radius √L by RMS normalisation.

    z: [B, ...] with a root mean square of 1e-3 or more. Returns float32 of the same shape with ‖v‖ = √L over all but
    the first dimension. The origin has no direction and stays where it is.
    """
    flat = z.flatten(1).float()
    radius = math.sqrt(flat.shape[1])
    return (F.normalize(flat, dim=1, eps=_FLOOR * radius) * radius).view(z.shape)


def angle_to_sigma(degrees: float) -> float:
    """Eq. 12: σ = tan α. degrees in [0, 90)."""
    return math.tan(math.radians(degrees))


def sigma_to_angle(sigma: float) -> float:
    """Eq. 12, the other way: α = arctan σ, in degrees."""
    return math.degrees(math.atan(sigma))


def angle_between(u: Tensor, v: Tensor) -> Tensor:
    """The angle between flattened latents u and v, [B, ...] each, in degrees: [B]."""
    return torch.rad2deg(torch.acos(F.cosine_similarity(u.flatten(1), v.flatten(1), dim=1).clamp(-1, 1)))


def great_circle(u: Tensor, v: Tensor, share: Tensor | float) -> Tensor:
    """The point at `share` of the way from u to v along the great circle that joins them (slerp).

    u, v: [B, ...] on the sphere; share: a number or [B], 0 at u and 1 at v. Returns float32 of the same shape, of
    norm √L. Opposite points, which no single great circle joins, give points without meaning.
    """
    a, b = F.normalize(u.flatten(1).float(), dim=1), F.normalize(v.flatten(1).float(), dim=1)
    # acos would lose half the digits for points that are close, or nearly opposite.
    omega = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)).clamp(min=1e-6).unsqueeze(1)
    t = torch.as_tensor(share, dtype=a.dtype, device=a.device).expand(len(a)).unsqueeze(1)
    between = F.normalize(torch.sin((1 - t) * omega) * a + torch.sin(t * omega) * b, dim=1)
    return (between * math.sqrt(a.shape[1])).view(u.shape)


def turn(v: Tensor, degrees: Tensor | float, e: Tensor) -> Tensor:
    """v turned by exactly this angle towards e, along the great circle through both.

    v, e: [B, ...], v on the sphere; degrees: a number or [B], 0 to 180. Returns float32 of the same shape, of norm √L.
    Eq. 4 turns by the angle of Eq. 12 up to how far e happens to lie along v already; here only the part of e that is
    perpendicular to v counts.
    """
    start, towards = F.normalize(v.flatten(1).float(), dim=1), e.flatten(1).float()
    aside = F.normalize(towards - (towards * start).sum(1, keepdim=True) * start, dim=1)
    angle = torch.deg2rad(torch.as_tensor(degrees, dtype=start.dtype, device=v.device)).expand(len(start)).unsqueeze(1)
    return spherify(torch.cos(angle) * start + torch.sin(angle) * aside).view(v.shape)


def stratified(count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` numbers in [0, 1], one from each of `count` equal strata, shuffled; the ends 0 and 1 are exact.

    With one number there is nothing to stratify and it is plainly uniform.
    """
    u = torch.rand(count, generator=generator)
    if count == 1:
        return u
    strata = (torch.arange(count) + u) / count
    strata[0], strata[-1] = 0.0, 1.0
    return strata[torch.randperm(count, generator=generator)]


@dataclass(frozen=True)
class NoiseRange:
    """How far training perturbs a latent (Eq. 5, Eq. 6 and Appendix C.2).

    angle: α, degrees, of σ_max = tan α. wide_angle: the far end of the wide band, degrees; None: no widening.
    wide_probability: how often an image's noise comes from the band (α, wide_angle]. sub: the largest s of
    σ_sub = s·σ. draw: what is uniform, σ (Eq. 5) or the angle (Table 10's prose). wide_draw: "band" spreads the
    wide draws over the whole band, as the paper says; "first-tenth" decides and places with one random number,
    as the authors' program does.
    """

    angle: float
    wide_angle: float | None = None
    wide_probability: float = 0.1
    sub: float = 0.5
    draw: Literal["sigma", "angle"] = "sigma"
    wide_draw: Literal["band", "first-tenth"] = "band"

    @property
    def sigma_max(self) -> float:
        """σ_max of Eq. 5."""
        return angle_to_sigma(self.angle)


def draw_radii(count: int, noise: NoiseRange, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The two noise magnitudes of each of `count` images, as shares of σ_max: (r, r_sub), both [count].

    σ = r·σ_max (Eq. 5) and σ_sub = s·σ (Eq. 6), r and s stratified over the batch. Where an image's noise is
    widened (Appendix C.2), r lies in (1, tan α_wide / tan α] and r_sub still comes from the r it had before.
    """
    r = stratified(count, generator)
    if noise.draw == "angle":
        r = torch.tan(r * math.radians(noise.angle)) / noise.sigma_max
    r_sub = noise.sub * stratified(count, generator) * r
    u = torch.rand(count, generator=generator)
    where = torch.rand(count, generator=generator) if noise.wide_draw == "band" else u
    if noise.wide_angle is not None:
        if noise.draw == "angle":
            degrees = noise.angle + where * (noise.wide_angle - noise.angle)
            wide = torch.tan(torch.deg2rad(degrees)) / noise.sigma_max
        else:
            wide = 1 + where * (angle_to_sigma(noise.wide_angle) / noise.sigma_max - 1)
        r = torch.where(u < noise.wide_probability, wide, r)
    return r, r_sub


def perturb(v: Tensor, sigma: Tensor | float, e: Tensor) -> Tensor:
    """Eq. 4: f(v + σ·e), the latent turned by about arctan σ towards the noise e.

    v, e: [B, ...]; sigma: a number or [B]. Where σ is 0 the latent is returned untouched.
    """
    sigma = torch.as_tensor(sigma, dtype=v.dtype, device=v.device).expand(v.shape[0])
    sigma = sigma.view(-1, *[1] * (v.dim() - 1))
    return torch.where(sigma == 0, v, spherify(v + sigma * e))
