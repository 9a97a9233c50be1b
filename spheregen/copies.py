"""Whether samples are copies of training images (Appendix B): their nearest ones, beside those of held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from spheregen import rng
from spheregen.interfaces import FeatureExtractor, ImageSource
from spheregen.reference import extract, read_images

SHOWN_AT = 64  # pixels: larger images are averaged down to it before pixels are compared
Progress = Callable[[str, int, int], None]


@dataclass
class Nearest:
    """The k nearest training images of each of n images, nearest first, by one measure.

    distances, float64 [n, k]; numbers, of images in the training set, int64 [n, k]; mirrored, bool [n, k]: whether it
    was the mirror image that is so near.
    """

    distances: Tensor
    numbers: Tensor
    mirrored: Tensor


@dataclass
class Copies:
    """Samples and held-out images, against training images. measure: "pixels" (the root mean square difference of
    pixels in [0, 1]) or an extractor's label (the Euclidean distance of features)."""

    measure: str
    samples: Nearest
    held_out: Nearest | None

    def as_dict(self) -> dict[str, Any]:
        """For inspection.json. sample_is_nearer: how often a sample is nearer to its nearest training image than a
        held-out image to its own; 0.5 where they are alike, towards 1 where samples are copies (or are smoother than
        photos are). p: of Mann and Whitney's test for more than 0.5. held_out_in_training: how many held-out images
        are training images too, which makes the comparison idle."""
        ours = self.samples.distances[:, 0]
        told = {"measure": self.measure, "samples": _quantiles(ours)}
        if self.held_out is None:
            return told
        theirs = self.held_out.distances[:, 0]
        test = stats.mannwhitneyu(ours.numpy(), theirs.numpy(), alternative="less")
        return {
            **told,
            "held_out": _quantiles(theirs),
            "sample_is_nearer": 1 - float(test.statistic) / (len(ours) * len(theirs)),
            "p": float(test.pvalue),
            "held_out_in_training": int((theirs < 1e-5).sum()),
        }


def find_copies(
    samples: Tensor,
    training: ImageSource,
    held_out: Tensor | None = None,
    *,
    neighbours: int = 5,
    among: int | None = None,
    mirrored: bool = False,
    extractor: FeatureExtractor | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Progress = lambda what, done, total: None,
) -> list[Copies]:
    """The nearest training images of samples, and of held-out images, both [n, C, H, W] in [0, 1].

    By pixels and, where an extractor is given, by its features. among: of so many training images, drawn by the seed;
    all where not given. mirrored: mirror images of the training images count too.
    """
    order = torch.randperm(len(training), generator=rng.generator(seed, "copies"))[:among].sort().values
    measures: dict[str, Callable[[Tensor], Tensor]] = {"pixels": pixels}
    if extractor is not None:
        net = extractor.to(device).eval()
        measures[extractor.label] = lambda images: extract(net, images, torch.device(device))[0].double()
    both = samples if held_out is None else torch.cat([samples, held_out])

    def vectors(measure: Callable[[Tensor], Tensor], name: str) -> Iterator[Tensor]:
        for part in order.split(batch_size):
            images, _ = read_images(training, part)
            found = measure(images)
            yield torch.stack([found, measure(images.flip(-1))], dim=1) if mirrored else found.unsqueeze(1)
            on_progress(f"nearest by {name}", int((order <= part[-1]).sum()), len(order))

    made = []
    for name, measure in measures.items():
        queries = torch.cat([measure(part) for part in both.split(batch_size)])
        distances, found = nearest(queries, vectors(measure, name), neighbours)
        numbers = order[found // 2]
        result = [Nearest(distances[rows], numbers[rows], found[rows] % 2 == 1)
                  for rows in (slice(len(samples)), slice(len(samples), None))]  # fmt: skip
        made.append(Copies(name, result[0], result[1] if held_out is not None else None))
    return made


def nearest(queries: Tensor, batches: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest vectors of each query [n, F], a vector in one or two versions counting once, as its nearer one.

    batches: [m, 1 or 2, F] each, of which only one is held at a time. Returns distances [n, k] and which: 2·number, and
    1 more where it was the second version; both nearest first.
    """
    queries = queries.double()
    best = torch.empty(len(queries), 0, dtype=torch.float64)
    which = torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for batch in batches:
        count, versions, _ = batch.shape
        away = torch.cdist(queries, batch.double().flatten(0, 1)).unflatten(1, (count, versions))
        away, version = away.min(dim=2)
        numbers = 2 * torch.arange(start, start + count) + version
        best, which = torch.cat([best, away], dim=1), torch.cat([which, numbers], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        which = which.gather(1, kept)
        start += count
    return best, which


def pixels(images: Tensor) -> Tensor:
    """Images [n, C, H, W] as vectors whose distance is the root mean square difference of their pixels."""
    if images.shape[-1] > SHOWN_AT:
        images = F.interpolate(images, (SHOWN_AT, SHOWN_AT), mode="area")
    flat = images.flatten(1).double()
    return flat / math.sqrt(flat.shape[1])


def _quantiles(values: Tensor) -> dict[str, float]:
    levels = {"smallest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95}
    return {name: float(values.quantile(level)) for name, level in levels.items()}
