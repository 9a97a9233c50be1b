"""The pictures of `spheregen inspect`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from spheregen import pictures, rng, uniformity
from spheregen.checkpoint import replacing
from spheregen.copies import Copies, Nearest
from spheregen.inspection import ClassLatents, Inspection
from spheregen.interfaces import ImageSource
from spheregen.reference import read_images

SPHERES = 7  # classes with a sphere of their own, beside one of uniform points
ROWS = 6  # of samples, and of held-out images, with their nearest training images
TILT, TURN = 25, 30  # degrees: from where the spheres are looked at
OURS, OTHERS, GREY = "tab:blue", "tab:orange", "0.45"


# -- the latent --------------------------------------------------------------------------------------------------------


def spheres(found: Inspection, path: Path, seed: int = 0) -> None:
    """Figure 7: latents projected to three dimensions at random and set on a sphere, one a class. The last sphere
    holds as many uniform points, for the eye to compare."""
    shown = [found.classes[int(i)] for i in _picked(len(found.classes), SPHERES)]
    count = max(each.count for each in shown)
    uniform = torch.randn(count, 3, generator=rng.generator(seed, "inspect", 2))
    columns = min(4, len(shown) + 1)
    rows = math.ceil((len(shown) + 1) / columns)
    figure = _figure(3.1 * columns, 3.5 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for axes, each in zip(panels, shown, strict=False):
        _sphere(axes, each.shadow, OURS)
        axes.set_title(f"{_short(each.name)}\n{each.count} images, {_p(each.projected.p)}", fontsize=10)
    _sphere(panels[len(shown)], uniformity.directions(uniform), GREY)
    panels[len(shown)].set_title(f"for comparison:\n{count} uniform points", fontsize=10)
    figure.suptitle(
        f"Latents of training images, projected at random from {found.dimension} dimensions to 3, a sphere a class.\n"
        "Dark points lie in front, light ones behind. p: how often uniform latents look as uneven in 16 such views.",
        fontsize=9,
    )
    _save(figure, path)


def _sphere(axes: Any, points: Tensor, colour: str) -> None:
    """Unit vectors [n, 3] on a sphere seen from a little above."""
    tilt, turn = np.radians(TILT), np.radians(TURN)
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.sin(tilt), np.cos(tilt)], [0, -np.cos(tilt), np.sin(tilt)]])
    view = about_x @ about_z  # x to the right, y up, z towards the eye
    circle = np.linspace(0, 2 * np.pi, 181)
    axes.fill(np.cos(circle), np.sin(circle), facecolor="0.97", edgecolor="0.5", linewidth=1, zorder=0)
    for latitude in np.radians([-60, -30, 0, 30, 60]):
        ring = np.stack([np.cos(latitude) * np.cos(circle), np.cos(latitude) * np.sin(circle),
                         np.full_like(circle, np.sin(latitude))])  # fmt: skip
        _front(axes, view @ ring)
    for longitude in np.radians(range(0, 180, 30)):
        ring = np.stack([np.cos(circle) * np.cos(longitude), np.cos(circle) * np.sin(longitude), np.sin(circle)])
        _front(axes, view @ ring)
    x, y, z = view @ points.double().numpy().T
    size = 120 / math.sqrt(len(x))
    axes.scatter(x[z < 0], y[z < 0], s=size, color=colour, alpha=0.35, linewidths=0, zorder=1)
    axes.scatter(x[z >= 0], y[z >= 0], s=1.4 * size, color=colour, alpha=0.85, linewidths=0, zorder=3)
    axes.set_aspect("equal")
    axes.set(xlim=(-1.06, 1.06), ylim=(-1.06, 1.06))


def _front(axes: Any, ring: np.ndarray) -> None:
    x, y, z = ring
    axes.plot(np.where(z >= 0, x, np.nan), np.where(z >= 0, y, np.nan), color="0.8", linewidth=0.6, zorder=2)


def latents(found: Inspection, path: Path) -> None:
    """Norms, re-encoding angles, mean resultant lengths and the angles between latents of one class."""
    figure = _figure(10.5, 7.4)
    (norms, angles), (resultants, pairs) = figure.subplots(2, 2)
    lengths = torch.cat([each.lengths for each in found.classes])
    norms.hist(lengths.numpy(), bins=60, color=OURS)
    norms.set(title="Length of z before it is put on the sphere", xlabel="‖z‖ / √L", ylabel="images")

    series = {"training": torch.cat([each.angles for each in found.classes])}
    if found.held_out_angles is not None:
        series["held out"] = found.held_out_angles
    _compared(angles, series)
    angles.set(title="Angle from a latent to its re-encoding E(D(v))", xlabel="degrees", ylabel="density")

    _resultants(resultants, found.classes, found.dimension)

    between = torch.cat([each.pairs for each in found.classes]).double().numpy()
    pairs.hist(between, bins=120, density=True, color=OURS, label="latents")
    # sin^(L−2) is the density of the angle between uniform directions; its logarithm, lest it underflow.
    grid = np.linspace(max(1e-3, between.min()), min(179.999, between.max()), 2000)
    width = math.degrees(1 / math.sqrt(found.dimension))
    fine = np.unique(np.concatenate([grid, np.linspace(max(1e-3, 90 - 5 * width), min(179.999, 90 + 5 * width), 500)]))
    log = (found.dimension - 2) * np.log(np.sin(np.radians(fine)))
    density = np.exp(log - log.max())
    pairs.plot(fine, density / np.trapezoid(density, fine), color="black", linewidth=1, label="if uniform")
    pairs.set(title="Angle between two latents of one class", xlabel="degrees", ylabel="density")
    pairs.legend(fontsize="small")
    _save(figure, path)


def _resultants(axes: Any, classes: Sequence[ClassLatents], dimension: int) -> None:
    places = np.arange(len(classes))
    counts = np.array([each.count for each in classes])
    # n·L·R̄² is χ² with L degrees of freedom.
    low, high = (np.sqrt(stats.chi2.ppf(level, dimension) / (counts * dimension)) for level in (0.025, 0.975))
    axes.bar(places, [each.resultant for each in classes], color=OURS, label="latents")
    axes.errorbar(places, 1 / np.sqrt(counts), yerr=[1 / np.sqrt(counts) - low, high - 1 / np.sqrt(counts)],
                  fmt="_", color="black", capsize=3, label="if uniform, 95%")  # fmt: skip
    if len(classes) <= 20:
        axes.set_xticks(places, [_short(each.name, 12) for each in classes])
        if max(len(each.name) for each in classes) > 3:
            axes.tick_params("x", rotation=45)
    axes.set(title="Mean resultant length of each class", ylabel="R̄ (0 to 1)")
    axes.legend(fontsize="small")


# -- copies ------------------------------------------------------------------------------------------------------------


def neighbours(copies: Copies, samples: Tensor, held_out: Tensor | None, training: ImageSource) -> Image.Image:
    """The samples that are nearest to a training image, each with its nearest ones, and held-out images likewise.

    samples, held_out: [n, C, H, W] in [0, 1], those that `copies` is about."""
    parts: list[tuple[str, Tensor, Nearest]] = [("sample", samples, copies.samples)]
    if held_out is not None and copies.held_out is not None:
        parts.append(("held out", held_out, copies.held_out))
    tiles, captions, titles = [], [], []
    for title, images, near in parts:
        for i in near.distances[:, 0].argsort()[:ROWS].tolist():
            found, _ = read_images(training, near.numbers[i])
            found = torch.where(near.mirrored[i].view(-1, 1, 1, 1), found.flip(-1), found)
            tiles += [images[i], *found]
            marks = [" mirrored" if turned else "" for turned in near.mirrored[i].tolist()]
            captions += ["", *(f"{d:.3g}{m}" for d, m in zip(near.distances[i].tolist(), marks, strict=True))]
            titles.append(title)
    columns = copies.samples.distances.shape[1] + 1
    heads = ["", "nearest", *(["2nd", "3rd", *(f"{k}th" for k in range(4, columns))][: columns - 2])]
    framed = range(0, len(tiles), columns)
    return pictures.grid(torch.stack(tiles), columns, titles, heads, captions=captions, framed=framed)


def distances(found: Sequence[Copies], path: Path) -> None:
    """Distances of samples, and of held-out images, to their nearest training images, by each measure."""
    figure = _figure(5.2 * len(found), 3.8)
    for axes, copies in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        series = {"samples": copies.samples.distances[:, 0]}
        if copies.held_out is not None:
            series["held-out images"] = copies.held_out.distances[:, 0]
        _compared(axes, series)
        what = "RMS difference" if copies.measure == "pixels" else "distance of features"
        axes.set(title=f"Nearest training image by {copies.measure}", xlabel=what, ylabel="density")
        axes.set_xlim(left=0)
    _save(figure, path)


# -- what they share ---------------------------------------------------------------------------------------------------


def chance(p: float) -> str:
    """A p-value as a person reads it.

    >>> chance(0.0312), chance(3e-7), chance(0)
    ('0.031', '3e-07', '< 1e-16')
    """
    if p < 1e-16:
        return "< 1e-16"
    return f"{p:.0e}" if p < 1e-3 else f"{p:.2g}"


def _p(p: float) -> str:
    told = chance(p)
    return f"p {told}" if told.startswith("<") else f"p = {told}"


def _compared(axes: Any, series: dict[str, Tensor]) -> None:
    everything = torch.cat(list(series.values()))
    bins = np.linspace(float(everything.min()), max(float(everything.max()), float(everything.min()) + 1e-6), 41)
    for (name, values), colour in zip(series.items(), (OURS, OTHERS), strict=False):
        axes.hist(values.numpy(), bins=bins, density=True, alpha=0.6, color=colour, label=f"{name}, {len(values)}")
    axes.legend(fontsize="small")


def _picked(count: int, shown: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, shown)).round().long()


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
