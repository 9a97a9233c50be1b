"""Plots of metrics, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spheregen.checkpoint import replacing

Line = Sequence[tuple[float, float]]
COLUMNS = 3


def lines(
    panels: Mapping[str, Mapping[str, Line]], x_label: str, path: Path, ticks: Sequence[str] | None = None
) -> None:
    """A panel a figure of merit, a line a name, over x. panels: title -> name -> points (x, y); ticks: what stands at
    x = 0, 1, … where x is no number."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(panels) :]:
        axes.remove()
    for axes, (title, named) in zip(places, panels.items(), strict=False):
        for number, (name, points) in enumerate(named.items()):
            # Ten colours, and then again with broken lines.
            axes.plot(*zip(*sorted(points), strict=True), "-" if number < 10 else "--", marker="o", label=name)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks, rotation=20, ha="right")
        elif all(float(x).is_integer() for points in named.values() for x, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(named) > 6:  # beside the lines, which they would cover
            axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1))
        elif len(named) > 1:
            axes.legend(fontsize="small")
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
