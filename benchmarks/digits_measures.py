"""Measures of a digits model against real digits, for `make demo`.

A sharp-looking grid can hide that all samples of a class are its average, so agreement of a classifier stands beside
the spread within a class, precision and recall, and the distance to the nearest training image.

    python benchmarks/digits_measures.py runs/digits --out demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from agreement import flat, rows_of, train_classifier
from rich.console import Console
from rich.table import Table
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

import spheregen

SAMPLES = 500
MEANING = """agreement: a classifier trained on real digits sees the class that was asked for
spread: standard deviation of a pixel within a class, as a share of real digits'
precision, recall: by 3 nearest neighbours, against held-out digits (for those, against training digits)
nearest: mean distance to the nearest training image, pixels in [0, 1]"""


def spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Standard deviation of a pixel within a class: mean over pixels and classes."""
    return float(np.mean([images[labels == label].std(axis=0).mean() for label in np.unique(labels)]))


def coverage(real: np.ndarray, others: np.ndarray, k: int = 3) -> float:
    """The share of `others` within the k-nearest-neighbour radius of some `real` image (Kynkäänniemi et al. 2019):
    precision with real images first, recall with the two exchanged."""
    radii = NearestNeighbors(n_neighbors=k + 1).fit(real).kneighbors(real)[0][:, -1]
    return float((pairwise_distances(others, real) <= radii).any(axis=1).mean())


def nearest(images: np.ndarray, training: np.ndarray) -> float:
    """Mean distance to the nearest training image."""
    return float(NearestNeighbors(n_neighbors=1).fit(training).kneighbors(images)[0].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    model = spheregen.load(arguments.run)
    assert model.recipe is not None
    training, training_labels = rows_of(model.recipe.data.build())
    held_out, held_out_labels = rows_of(model.recipe.held_out())
    classifier = train_classifier(training, training_labels)
    labels = np.arange(SAMPLES) % 10

    rows: dict[str, dict[str, float]] = {}
    for steps in (1, 2, 4):
        images = flat(spheregen.sample(model, labels.tolist(), steps=steps, guidance=1.0, seed=arguments.seed))
        rows[f"{steps}-step samples"] = {
            "agreement": float((classifier.predict(images) == labels).mean()),
            "spread": spread(images, labels) / spread(training, training_labels),
            "precision": coverage(held_out, images),
            "recall": coverage(images, held_out),
            "nearest": nearest(images, training),
        }
    rows["held-out real digits"] = {
        "agreement": float(classifier.score(held_out, held_out_labels)),
        "spread": spread(held_out, held_out_labels) / spread(training, training_labels),
        "precision": coverage(training, held_out),
        "recall": coverage(held_out, training),
        "nearest": nearest(held_out, training),
    }

    table = Table("", "agreement", "spread", "precision", "recall", "nearest", box=None, header_style="bold")
    for name, row in rows.items():
        table.add_row(name, f"{row['agreement']:.1%}", *[f"{row[k]:.2f}" for k in list(row)[1:]])
    console = Console(highlight=False)
    console.print(f"{SAMPLES} samples of each kind, no guidance, seed {arguments.seed}")
    console.print(table)
    console.print(MEANING, style="dim")
    goals = {
        "1-step agreement at least 95%": rows["1-step samples"]["agreement"] >= 0.95,
        "4-step agreement at least 95%": rows["4-step samples"]["agreement"] >= 0.95,
        "4-step spread at least 0.80 of real": rows["4-step samples"]["spread"] >= 0.8,
        "4-step samples no copies: at least half of held-out digits' distance to the nearest":
            rows["4-step samples"]["nearest"] >= 0.5 * rows["held-out real digits"]["nearest"],
    }  # fmt: skip
    for goal, met in goals.items():
        console.print(f"{'[green]met[/]   ' if met else '[red]missed[/]'} {goal}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"samples": SAMPLES, "seed": arguments.seed, "guidance": 1.0, "rows": rows, "goals": goals}
    (arguments.out / "measures.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"pictures and measures in {arguments.out}/")


if __name__ == "__main__":
    main()
