"""Interpolation, crossover, restyling and variation (Figure 6, Sections 4 and 5).

Each is the loop of `spheregen.generate`, started elsewhere: from points between others, from an image, or from points
around one. None is guided unless asked, as in the paper. `on_step`, where a function takes it, is called with each
step as soon as it is there; what it raises ends the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spheregen import rng
from spheregen.errors import SpheregenError, suggest
from spheregen.generation import Step, class_labels, conditioner_for, default, evaluating, generate, watched
from spheregen.interfaces import Conditioner, Network, Sampler
from spheregen.model import SphereModel
from spheregen.registry import registry
from spheregen.sphere import great_circle, spherify, turn

Path = Literal["linear", "great-circle"]

# Which pixels come from the first image, by the place of their centres: x to the right and y down, both in (0, 1).
SEAMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "left-right": lambda x, y: 0.5 - x,
    "top-bottom": lambda x, y: 0.5 - y,
    "falling": lambda x, y: y - x,
    "rising": lambda x, y: 1 - x - y,
}


# -- interpolation -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def interpolate(
    model: SphereModel,
    labels: Sequence[int] | Tensor | None = None,
    *,
    images: Tensor | None = None,
    picks: Sequence[int] | None = None,
    frames: int = 8,
    at: Sequence[Any] | Tensor | None = None,
    path: Path = "linear",
    steps: int | None = None,
    guidance: float = 1.0,
    position: str | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    batch_size: int = 64,
    on_step: Callable[[Step], object] | None = None,
) -> Tensor:
    """Images between two ends, or among four corners (Figure 6): float [n, C, H, W] in [0, 1], on the CPU.

    The ends are samples: those that `spheregen.sample` numbers `picks` (0, 1, … where not given), with the same seed,
    labels and settings; or `images` [2 or 4, C, H, W] in [0, 1], encoded. There are as many as labels, images or
    picks; without any, two. labels: a class an end; the null class where not given. Class vectors are blended
    linearly, in both networks, and so is the later steps' noise along `path`, so that the ends are reached exactly.

    path: "linear" blends latents by weights and spherifies; "great-circle" goes along the sphere at a steady angle.
    frames: so many from end to end, or a side of the square whose corners are top left, top right, bottom left and
    bottom right, row by row; or `at` says where: numbers from 0 to 1, for corners pairs (to the right, down).
    steps: the recipe's where not given, and 1 from images.
    """
    count = _ends(labels=labels, images=images, picks=picks)
    where = _places(count, frames, at)
    y = class_labels(model, labels, count)
    conditioner = _conditioner(model, guidance, position)
    sampler = sampler or default(model, "sampler")
    if steps is None:
        steps = 1 if images is not None else model.recipe.sampling.steps if model.recipe else 1
    device = next(model.parameters()).device
    shape = (model.shape.tokens, model.shape.latent_channels)
    y = y.to(device) if y is not None else None
    found = []
    with evaluating(model):
        for places in where.to(device).split(batch_size):
            generators = rng.generators(seed, "sample", picks if picks is not None else range(count), device)
            prior = None
            if images is None:
                prior = sampler.prior(shape, generators)
                ends = spherify(prior)
            else:
                ends = model.to_sphere(_shaped(model, images).to(device) * 2 - 1, y)
            among, rows = _blended(model, y, _weights(count, places))
            walk = generate(
                among,
                rows,
                steps=steps,
                sampler=_Between(sampler, places, path, prior),
                conditioner=conditioner,
                generators=generators,
                latents=blend(ends, places, path),
            )
            *_, last = watched(walk, on_step)
            found.append(last.images.cpu())
    return torch.cat(found)


def blend(points: Tensor, places: Tensor, path: Path = "linear") -> Tensor:
    """Points of the sphere among others: [2 or 4, ...] at places [n] or, among four, [n, 2] -> [n, ...] of norm √L.

    Four corners blend along the upper and the lower side, and then from the one to the other.
    """
    if path not in ("linear", "great-circle"):
        raise SpheregenError(f"path: {path!r}; {suggest(path, ['linear', 'great-circle'])}")
    if path == "linear":
        return spherify(torch.tensordot(_weights(len(points), places), points.float(), dims=1))
    if len(points) == 2:
        first, second = (point.expand(len(places), *point.shape) for point in points)
        return great_circle(first, second, places)
    upper, lower = (blend(side, places[:, 0], path) for side in points.split(2))
    return great_circle(upper, lower, places[:, 1])


def _weights(ends: int, places: Tensor) -> Tensor:
    """The share of each end, or bilinearly of each corner, at places [n] or [n, 2]: [n, ends]."""
    if ends == 2:
        return torch.stack([1 - places, places], dim=1)
    x, y = places.unbind(dim=1)
    return torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=1)


def _ends(**given: Any) -> int:
    """How many ends there are. Raises SpheregenError where what was given does not agree."""
    counts = {name: len(value) for name, value in given.items() if value is not None}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    if len(set(counts.values())) > 1:
        raise SpheregenError(f"interpolate: expected as many of each, one an end, got {told}")
    count = next(iter(counts.values()), 2)
    if count not in (2, 4):
        raise SpheregenError(f"interpolate: expected two ends or four corners, got {told}")
    return count


def _places(ends: int, frames: int, at: Sequence[Any] | Tensor | None) -> Tensor:
    """Where the frames lie: [n] between two ends, [n, 2] among four corners."""
    if at is None:
        if frames < 2:
            raise SpheregenError(f"frames: expected at least 2, got {frames}")
        line = torch.linspace(0, 1, frames)
        return line if ends == 2 else torch.cartesian_prod(line, line).flip(1)
    places = torch.as_tensor(at, dtype=torch.float32)
    if places.dim() != (1 if ends == 2 else 2) or (ends == 4 and places.shape[1] != 2) or not len(places):
        what = "numbers" if ends == 2 else "pairs (to the right, down)"
        raise SpheregenError(f"at: expected {what} from 0 to 1, got a shape of {list(places.shape)}")
    if places.min() < 0 or places.max() > 1:
        raise SpheregenError(f"at: expected numbers from 0 to 1, got {places.min():g} to {places.max():g}")
    return places


class _Between(Sampler):
    """The noise of points between: the blend, in direction and in length, of what a sampler draws for the ends."""

    def __init__(self, sampler: Sampler, places: Tensor, path: Path, prior: Tensor | None) -> None:
        super().__init__(sampler.options)
        self.sampler, self.places, self.path, self.prior_of_ends = sampler, places, path, prior
        self.drawn: Tensor | None = None

    def strength(self, step: int, steps: int) -> float:
        return self.sampler.strength(step, steps)

    def noise(
        self, shape: Sequence[int], generators: Sequence[torch.Generator], previous: Tensor | None, first: Tensor | None
    ) -> Tensor:
        """As the sampler's, but generators are one an end, and the rows of the result one a point between."""
        self.drawn = self.sampler.noise(shape, generators, self.drawn, self.prior_of_ends)
        lengths = _weights(len(self.drawn), self.places) @ self.drawn.flatten(1).norm(dim=1)
        scale = lengths / math.sqrt(self.drawn[0].numel())
        return blend(self.drawn, self.places, self.path) * scale.view(-1, *[1] * len(shape))


class _Vectors(nn.Module):
    """A network whose classes are vectors of our own: class i is the i-th row, the null class the last."""

    def __init__(self, network: Network, rows: Tensor) -> None:
        super().__init__()
        self.network, self.rows = network, rows
        self.many_labels = network.many_labels

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.network(x, self.rows[labels])


def _blended(model: SphereModel, labels: Tensor | None, weights: Tensor) -> tuple[SphereModel, Tensor | None]:
    """A model whose classes are blends, by weights [n, ends], of the classes `labels` [ends] of another, and the
    labels 0…n − 1 of those blends.

    It shares the other's networks and is guided as ever: its null class is the other's.
    """
    if labels is None or (labels == labels[0]).all():
        return model, None if labels is None else labels[:1].expand(len(weights))
    null = torch.tensor([model.shape.null_label], device=labels.device)
    networks = {"encoder": model.encoder, "decoder": model.decoder}
    among = model.sharing(
        **{
            part: _Vectors(network, torch.cat([weights @ network.embed(labels), network.embed(null)]))
            for part, network in networks.items()
        }
    )
    among.shape = replace(model.shape, num_classes=len(weights))
    return among, torch.arange(len(weights), device=labels.device)


# -- editing -----------------------------------------------------------------------------------------------------------


def crossover(
    model: SphereModel,
    a: Tensor,
    b: Tensor,
    seam: str | Tensor = "left-right",
    *,
    labels: Sequence[int] | Tensor | None = None,
    steps: int = 10,
    strength: float = 0.25,
    gamma: float = 1.0,
    guidance: float = 1.0,
    position: str | None = None,
    seed: int = 0,
    on_step: Callable[[Step], object] | None = None,
) -> Tensor:
    """Image crossover (Section 5, Figure 9): images a and b, [B, C, H, W] in [0, 1], stitched and made one.

    seam: as `stitch` takes it. labels: the null class where not given. strength and gamma: r and γ of Eq. 13. Returns
    float [steps + 1, B, C, H, W] in [0, 1], on the CPU: the stitched images, then each step's.
    """
    if labels is not None and not model.shape.num_classes:
        raise SpheregenError("crossover: this model is unconditional; leave out the class")
    x = stitch(_shaped(model, a), _shaped(model, b), seam)
    y = class_labels(model, labels, len(x))
    return _rounds(model, x, y, steps, strength, gamma, _conditioner(model, guidance, position), seed, on_step)


def stitch(a: Tensor, b: Tensor, seam: str | Tensor = "left-right") -> Tensor:
    """Images [..., H, W] composed of two. seam: "left-right" or "top-bottom" halves, the first image's named first;
    "falling" or "rising", along that diagonal with the first image to its left; or a mask that fits [..., H, W], 1
    where the first image shows and 0 where the second does."""
    if isinstance(seam, str):
        if seam not in SEAMS:
            raise SpheregenError(f"seam: unknown '{seam}'; {suggest(seam, SEAMS)}")
        y, x = (((torch.arange(size) + 0.5) / size) for size in a.shape[-2:])
        seam = (torch.sign(SEAMS[seam](x, y.unsqueeze(1)).expand(a.shape[-2:]).round(decimals=6)) + 1) / 2
    mask = seam.to(a.device, a.dtype)
    return mask * a + (1 - mask) * b


def restyle(
    model: SphereModel,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    *,
    steps: int = 4,
    strength: float = 1.0,
    gamma: float = 0.0,
    guidance: float = 1.0,
    position: str | None = None,
    seed: int = 0,
    on_step: Callable[[Step], object] | None = None,
) -> Tensor:
    """Conditional manipulation (Section 5, Figure 8): images [B, C, H, W] in [0, 1], or one for all, as other classes.

    labels: the class that each is made into. strength: r of Eq. 5, how far each step leaves the image; gamma: γ of
    Eq. 13. Returns float [steps + 1, B, C, H, W] in [0, 1], on the CPU: the images, then each step's.
    """
    if not model.shape.num_classes:
        raise SpheregenError("restyle: this model is unconditional and has no classes to restyle to")
    x, y = _shaped(model, images), class_labels(model, labels, None)
    assert y is not None
    if len(x) not in (1, len(y)):
        raise SpheregenError(f"restyle: expected one image or one a label, got {len(x)} images and {len(y)} labels")
    x = x.expand(len(y), *x.shape[1:])
    return _rounds(model, x, y, steps, strength, gamma, _conditioner(model, guidance, position), seed, on_step)


@torch.no_grad()
def vary(
    model: SphereModel,
    images: Tensor,
    labels: Sequence[int] | Tensor | None = None,
    *,
    degrees: float = 20.0,
    count: int = 8,
    steps: int = 1,
    guidance: float = 1.0,
    position: str | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    on_step: Callable[[Step], object] | None = None,
) -> Tensor:
    """Variations: images [B, C, H, W] in [0, 1] encoded, and their latents turned by an angle in random directions.

    labels: a class an image, for both networks; the null class where not given. degrees: 0 (reconstructions) to 180,
    exactly so many, where training's noise turns by at most α (Eq. 12). steps: of Algorithm 1, the first of which
    decodes the turned latents; further ones may lead farther away. Returns float [B, count, C, H, W] in [0, 1], on the
    CPU. Variation i of image b depends only on the seed, i, that image and its label.
    """
    if not 0 <= degrees <= 180:
        raise SpheregenError(f"degrees: expected 0 to 180, got {degrees:g}")
    for name, value in (("count", count), ("steps", steps)):
        if value < 1:
            raise SpheregenError(f"{name}: expected at least 1, got {value}")
    if labels is not None and not model.shape.num_classes:
        raise SpheregenError("vary: this model is unconditional; leave out the class")
    x = _shaped(model, images)
    y = class_labels(model, labels, len(x))
    device = next(model.parameters()).device
    y = y.to(device) if y is not None else None
    conditioner = _conditioner(model, guidance, position)
    generators = [g for _ in range(len(x)) for g in rng.generators(seed, "vary", range(count), device)]
    with evaluating(model):
        v = model.to_sphere(x.to(device) * 2 - 1, y).repeat_interleave(count, dim=0)
        walk = generate(
            model,
            y.repeat_interleave(count) if y is not None else None,
            steps=steps,
            sampler=sampler or default(model, "sampler"),
            conditioner=conditioner,
            generators=generators,
            latents=turn(v, degrees, rng.normal(v.shape[1:], generators)),
        )
        *_, last = watched(walk, on_step)
        return last.images.cpu().unflatten(0, (len(x), count))


def _rounds(
    model: SphereModel,
    images: Tensor,
    labels: Tensor | None,
    steps: int,
    strength: float,
    gamma: float,
    conditioner: Conditioner,
    seed: int,
    on_step: Callable[[Step], object] | None,
) -> Tensor:
    """Images and what each step makes of them: [steps + 1, B, C, H, W]. Image i's noise depends on the seed and i."""
    if steps < 1:
        raise SpheregenError(f"steps: expected at least 1, got {steps}")
    device = next(model.parameters()).device
    decay = registry.get("sampler", "decay")
    with evaluating(model):
        walk = generate(
            model,
            labels.to(device) if labels is not None else None,
            steps=steps,
            sampler=decay(decay.Options(r=strength, gamma=gamma)),
            conditioner=conditioner,
            generators=rng.generators(seed, "edit", range(len(images)), device),
            start=images.to(device) * 2 - 1,
        )
        return torch.stack([images.cpu(), *(step.images.cpu() for step in watched(walk, on_step))])


def _shaped(model: SphereModel, images: Tensor) -> Tensor:
    """Images as the model takes them. Raises SpheregenError where they are of another size."""
    spec = model.shape.image
    wanted = (spec.channels, spec.size, spec.size)
    if images.dim() != 4 or tuple(images.shape[1:]) != wanted:
        raise SpheregenError(
            f"images: expected [B, {spec.channels}, {spec.size}, {spec.size}], got {list(images.shape)}"
        )
    return images.float()


def _conditioner(model: SphereModel, guidance: float, position: str | None) -> Conditioner:
    """The conditioner at a scale, none being 1, which an unconditional model takes too."""
    if guidance == 1 and position is None and not model.shape.num_classes:
        return default(model, "conditioner")
    return conditioner_for(model, guidance, position)
