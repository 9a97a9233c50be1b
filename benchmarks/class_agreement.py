"""Which classes a model hits: the share of each class's samples in which a classifier sees that class.

    python benchmarks/class_agreement.py runs/fashion_mnist --steps 1,2,4,6 --out agreement

The classifier learnt the recipe's training images, as many of them mirrored as in training. What it makes of held-out
real ones is the figure to compare with: samples cannot well be told better, and a class whose real images are often
mistaken says little.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from agreement import confusion, flat, rows_of, train_classifier
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import spheregen
from spheregen.cli.evaluate import named_sampler, numbers
from spheregen.cli.options import pick_sampler
from spheregen.generation import conditioner_for
from spheregen.tables import counted, way

HELD_OUT = 5_000  # images at most: more tell a class's accuracy no better than samples' is told


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--steps", default="1,2,4,6", help="steps to sample with")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance scale; 1 is none")
    parser.add_argument("--sampler", metavar="NAME[:KEY=VALUE,…]", help="as fixed:noise=independent; the recipe's")
    parser.add_argument("--samples", type=int, default=100, help="samples a class")
    parser.add_argument("--training", type=int, default=15_000, help="training images, at most, for the classifier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for agreement.json and agreement.md")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        report = measure(options)
    except spheregen.SpheregenError as error:
        sys.exit(f"error: {error}")
    heads, rows = table(report)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for i, head in enumerate(heads):
        shown.add_column(head, justify="left" if i in (0, len(heads) - 1) else "right")
    for row in rows:
        shown.add_row(*row)
    console.print(report["title"])
    console.print(shown)
    console.print(report["note"], style="dim")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "agreement.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (options.out / "agreement.md").write_text(markdown(report), encoding="utf-8")
        console.print(f"→ {options.out}/agreement.json, agreement.md")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The shares a class, for held-out images and for each number of steps."""
    model = spheregen.load(options.run)
    assert model.recipe is not None
    classes = model.shape.num_classes
    if not classes:
        raise spheregen.SpheregenError(f"{options.run}: this model is unconditional: no class is asked for")
    steps = numbers("--steps", options.steps, int)
    name, settings = named_sampler(options.sampler) if options.sampler else (None, [])
    sampler = pick_sampler(model, name, settings)
    flip = model.recipe.training.flip
    images, labels = rows_of(model.recipe.data.build(), options.training, flip)
    classifier = train_classifier(images, labels)
    real = confusion(classifier, *rows_of(model.recipe.held_out(), HELD_OUT, flip), classes)
    asked = np.arange(classes).repeat(options.samples)
    sampled = {}
    for length in steps:
        made = spheregen.sample(
            model, asked.tolist(), steps=length, guidance=options.cfg, sampler=sampler, seed=options.seed
        )
        sampled[length] = confusion(classifier, flat(made), asked, classes)
    how = way({
        "sampler": {"use": sampler.name, **sampler.options.model_dump(mode="json")}, "guidance": options.cfg,
        "position": conditioner_for(model, options.cfg).name,
    })  # fmt: skip
    return {
        "title": f"{model.recipe.name}: {counted(options.samples, 'sample')} a class, {how}, seed {options.seed}",
        "note": f"seen as: what most of the others are taken for, at {counted(steps[-1], 'step')}. The classifier "
                f"learnt {counted(len(images), 'real image')}, {flip:.0%} of them mirrored; a share of "
                f"{options.samples} samples is known to "
                f"± {50 / options.samples**0.5:.1f} points at most (one standard error).",
        "run": str(options.run),
        "samples_per_class": options.samples,
        "guidance": options.cfg,
        "sampler": how,
        "seed": options.seed,
        "training_images": len(images),
        "classes": model.class_names,
        "held_out": as_json(real),
        "steps": {str(length): as_json(shares) for length, shares in sampled.items()},
    }  # fmt: skip


def as_json(shares: NDArray[np.float64]) -> dict[str, Any]:
    """Agreement a class and over all, and the whole matrix; null for a class without images."""
    listed = [[None if np.isnan(value) else float(value) for value in row] for row in shares]
    return {
        "agreement": [row[i] for i, row in enumerate(listed)],
        "mean": float(np.nanmean(np.diagonal(shares))),
        "confusion": listed,
    }


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row a class and one of means."""
    columns = [report["held_out"], *report["steps"].values()]
    heads = ["class", "held-out real", *(counted(int(steps), "step") for steps in report["steps"]), "seen as"]
    last = columns[-1]["confusion"]
    rows = [
        [name, *(percent(column["agreement"][i]) for column in columns), mistaken(last[i], i, report["classes"])]
        for i, name in enumerate(report["classes"])
    ]
    return heads, [*rows, ["mean", *(percent(column["mean"]) for column in columns), ""]]


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def mistaken(shares: list[float], own: int, names: list[str]) -> str:
    """The other class that images are most often taken for, and how often."""
    others = [(share, name) for i, (share, name) in enumerate(zip(shares, names, strict=True)) if i != own]
    share, name = max(others)
    return f"{name} ({share:.0%})" if share else ""


def markdown(report: dict[str, Any]) -> str:
    """The table as a page."""
    heads, rows = table(report)
    lines = [heads, ["---", *["---:"] * (len(heads) - 2), "---"], *rows]
    return "\n".join([report["title"], "", *(f"| {' | '.join(line)} |" for line in lines), "", report["note"], ""])


if __name__ == "__main__":
    main()
