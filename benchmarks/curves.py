"""The loss curves of two runs side by side, as of one recipe in two precisions.

    spheregen train digits --run runs/a --set training.precision=fp32
    spheregen train digits --run runs/b --set training.precision=bf16
    python benchmarks/curves.py runs/a runs/b

Runs of one seed see the same images and noise, so that step by step the losses differ by what the runs differ in. A row
is a window of images: both means, their ratio, and how far the losses of single log lines lie apart in the mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spheregen.checkpoint import RunFolder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("a", type=Path, help="a run folder")
    parser.add_argument("b", type=Path, help="another, of the same recipe and seed")
    parser.add_argument("--key", default="loss", help="what to compare: loss, or the name of a term")
    parser.add_argument("--rows", type=int, default=8, help="windows")
    options = parser.parse_args(arguments)
    if options.rows < 1:
        parser.error(f"--rows {options.rows}: expected at least 1")
    a, b = (read(run, options.key) for run in (options.a, options.b))
    both = sorted(a.keys() & b.keys())
    if not both:
        sys.exit(f"error: {options.a} and {options.b}: no image count at which both have logged {options.key}")
    table = Table("images", options.a.name, options.b.name, "ratio", "apart", box=None, header_style="bold")
    for row in windows(both, options.rows):
        one, other = ([run[images] for images in row] for run in (a, b))
        apart = statistics.mean(abs(y / x - 1) for x, y in zip(one, other, strict=True))
        means = statistics.mean(one), statistics.mean(other)
        table.add_row(f"to {row[-1]:,}", *(f"{m:.4f}" for m in means), f"{means[1] / means[0]:.3f}",
                      f"{apart:.1%}")  # fmt: skip
    Console(highlight=False).print(table)


def read(run: Path, key: str) -> dict[int, float]:
    """A metric of a run by the images it was logged at."""
    try:
        lines = [json.loads(line) for line in RunFolder(run).metrics.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        sys.exit(f"error: {run}: no run with metrics.jsonl ({error.strerror})")
    return {line["images"]: line[key] for line in lines if key in line}


def windows(images: list[int], count: int) -> list[list[int]]:
    """Cut a sorted list into `count` windows of nearly one length, fewer where there is less."""
    count = min(count, len(images))
    borders = [len(images) * i // count for i in range(count + 1)]
    return [images[begin:end] for begin, end in itertools.pairwise(borders)]


if __name__ == "__main__":
    main()
