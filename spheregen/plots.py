"""Plots of metrics, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spheregen.checkpoint import replacing

Line = Sequence[tuple[float, float]]


def lines(
    panels: Mapping[str, Mapping[str, Line]], x_label: str, path: Path, ticks: Sequence[str] | None = None
) -> None:
    """A panel a figure of merit, a line a name, over x. panels: title -> name -> points (x, y); ticks: what stands at
    x = 0, 1, … where x is no number."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, named) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in named.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks, rotation=20, ha="right")
        elif all(float(x).is_integer() for points in named.values() for x, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(named) > 1:
            axes.legend(fontsize="small")
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
