"""Whether a trained model's latents are what the paper says: uniform on the sphere, for each class alone (Section 4).

found = inspect_latents(model, model.recipe.data.build(), count=500)
found.overall["bingham"].p
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spheregen import rng, uniformity
from spheregen.errors import SpheregenError
from spheregen.generation import evaluating
from spheregen.interfaces import ImageSource
from spheregen.model import SphereModel
from spheregen.reference import read_images
from spheregen.sphere import angle_between, spherify

FEWEST = 10  # latents of a class, below which nothing is said of it
Progress = Callable[[str, int, int], None]


@dataclass
class ClassLatents:
    """What the latents of one class are like.

    lengths: ‖z‖/√L before the sphere, [n]; the paper's sphere is at 1. angles: in degrees, from each latent v to its
    re-encoding E(D(v)), [n]. shadow: their projection to three dimensions, of unit length, [n, 3]. pairs: the angles in
    degrees between any two, [n·(n − 1)/2]. resultant: R̄, the mean resultant length.
    """

    label: int
    name: str
    lengths: Tensor
    angles: Tensor
    shadow: Tensor
    pairs: Tensor
    resultant: float
    rayleigh: uniformity.Test
    projected: uniformity.Test
    bingham: uniformity.Test

    @property
    def count(self) -> int:
        return len(self.lengths)

    def as_dict(self) -> dict[str, Any]:
        """For inspection.json."""
        return {
            "label": self.label,
            "name": self.name,
            "count": self.count,
            "mean_resultant_length": self.resultant,
            # E R̄² = 1/n for uniform directions, in any dimension.
            "mean_resultant_length_if_uniform": 1 / math.sqrt(self.count),
            **{name: told(getattr(self, name)) for name in ("rayleigh", "projected", "bingham")},
            "pairwise_angle": spread(self.pairs),
            "length": spread(self.lengths),
            "reencoding_angle": spread(self.angles),
        }


@dataclass
class Inspection:
    """The classes that were looked at, those that were too small, and the re-encoding angles of held-out images."""

    dimension: int
    classes: list[ClassLatents]
    passed_over: dict[str, int]
    held_out_angles: Tensor | None

    @property
    def overall(self) -> dict[str, uniformity.Test]:
        """The classes' tests together: they are independent, having no latent in common."""
        names = ("rayleigh", "projected", "bingham")
        return {name: uniformity.pooled([getattr(found, name) for found in self.classes]) for name in names}

    def as_dict(self) -> dict[str, Any]:
        return {
            "dimension": self.dimension,
            "classes": [found.as_dict() for found in self.classes],
            "passed_over": self.passed_over,
            "overall": {name: told(test) for name, test in self.overall.items()},
            "held_out_reencoding_angle": None if self.held_out_angles is None else spread(self.held_out_angles),
        }


def inspect_latents(
    model: SphereModel,
    source: ImageSource,
    *,
    held_out: ImageSource | None = None,
    count: int = 500,
    classes: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Progress = lambda what, done, total: None,
) -> Inspection:
    """Look at the latents of at most `count` images of each of some classes, encoded with their class.

    classes: all where not given; of an unconditional model all images are one class. held_out: images that were not
    trained on, to compare the re-encoding of. Which images is decided by the seed. Raises SpheregenError where no class
    has enough images.
    """
    groups = _groups(model, source, classes, count, seed)
    axes = uniformity.projections(model.shape.latent_dim, rng.generator(seed, "inspect"))
    total = sum(len(indices) for _, _, indices in groups)
    found: list[ClassLatents] = []
    passed_over: dict[str, int] = {}
    done = 0
    for label, name, indices in groups:
        if len(indices) < FEWEST:
            passed_over[name] = len(indices)
            continue
        v, lengths, angles = _encode(model, source, indices, label, batch_size)
        shadow = uniformity.directions(uniformity.directions(v) @ axes[0]).float()
        found.append(
            ClassLatents(
                label, name, lengths, angles, shadow, uniformity.pairwise_angles(v).float(),
                uniformity.mean_resultant_length(v), uniformity.rayleigh(v), uniformity.projected_bingham(v, axes),
                uniformity.bingham(v),
            )
        )  # fmt: skip
        done += len(indices)
        on_progress("latents", done, total)
    if not found:
        raise SpheregenError(f"inspect: no class has {FEWEST} images; --count and the data allow "
                             f"{max(passed_over.values(), default=0)}")  # fmt: skip
    others: list[Tensor] = []
    if held_out is not None:
        for label, _, indices in _groups(model, held_out, [each.label for each in found], count, seed):
            if len(indices):
                others.append(_encode(model, held_out, indices, label, batch_size)[2])
    return Inspection(model.shape.latent_dim, found, passed_over, torch.cat(others) if others else None)


@torch.no_grad()
def _encode(
    model: SphereModel, source: ImageSource, indices: Tensor, label: int, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [n, N, D] of images of one class, ‖z‖/√L [n], and the angle to E(D(v)) [n]; on the CPU."""
    device = next(model.parameters()).device
    rows = []
    with evaluating(model):
        for part in indices.split(batch_size):
            images, _ = read_images(source, part)
            y = torch.full((len(part),), label, device=device) if model.shape.num_classes else None
            z = model.encode(images.to(device) * 2 - 1, y)
            v = spherify(z)
            again = model.encode(model.decode(v, y), y)
            length = z.flatten(1).float().norm(dim=1) / math.sqrt(model.shape.latent_dim)
            rows.append((v.cpu(), length.cpu(), angle_between(v, again.float()).cpu()))
    v, length, angle = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return v, length, angle


def _groups(
    model: SphereModel, source: ImageSource, classes: Sequence[int] | None, count: int, seed: int
) -> list[tuple[int, str, Tensor]]:
    """(label, name, indices of at most `count` images) of each class."""
    order = torch.randperm(len(source), generator=rng.generator(seed, "inspect", 1))
    if not model.shape.num_classes:
        return [(0, "all images", order[:count])]
    labels = labels_of(source)[order]
    chosen = range(model.shape.num_classes) if classes is None else dict.fromkeys(classes)
    return [(label, model.class_names[label], order[labels == label][:count]) for label in chosen]


def labels_of(source: ImageSource) -> Tensor:
    """All labels [n]: the source's own table where it keeps one, as those that ship do; read image by image if not."""
    known = getattr(source, "labels", None)
    return torch.as_tensor(known if known is not None else [source[i][1] for i in range(len(source))])


def told(test: uniformity.Test) -> dict[str, float]:
    return {**test._asdict(), "z": test.z}


def spread(values: Tensor) -> dict[str, float]:
    """Mean, standard deviation and range."""
    x = values.double()
    return {"mean": float(x.mean()), "std": float(x.std()), "min": float(x.min()), "max": float(x.max())}
