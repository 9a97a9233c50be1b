"""How fast images come from files and from shards: the loader alone, without training.

Makes image files in a temporary folder, packs them into shards, and reads both as training does, in rounds that
alternate between the two. The files have just been written, so the disk's own speed is not part of it: what is measured
is finding, decoding and collating.

    python benchmarks/loading.py                                    # Fashion-MNIST as PNG files of 28×28
    python benchmarks/loading.py --size 256 --training-rate 41.5    # crops of photos as JPEG files, beside a training
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import spheregen
from spheregen.loader import PREFETCH, Slices, training_batches
from spheregen.packing import Packing

CLASSES = 10
GOAL = 3.0  # times what training consumes


def fashion_files(folder: Path, count: int, root: str | None) -> None:
    """Fashion-MNIST's first images as PNG files, a folder a class."""
    component = spheregen.registry.get("data", "fashion-mnist")
    source = component(component.Options(root=root))
    for number in range(count):
        image, label = source[number % len(source)]
        Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{number:06d}.png")


def photo_files(folder: Path, count: int, size: int) -> None:
    """Crops of scikit-learn's two photos, mirrored or not, as JPEG files of size × size, a folder a class."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    random = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number % len(photos)]
        side = random.integers(min(size, 256), min(photo.shape[:2]) + 1)
        top, left = (random.integers(0, length - side + 1) for length in photo.shape[:2])
        crop = photo[top : top + side, left : left + side, :: 1 - 2 * int(random.integers(2))]
        picture = Image.fromarray(np.ascontiguousarray(crop)).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(folder / str(number % CLASSES) / f"{number:06d}.jpg", quality=90)


def rate(source: spheregen.ImageSource, workers: int, batch_size: int, images: int, seed: int) -> float:
    """Images a second that training would be handed, once the workers run and what they made ahead is used up."""
    batches = training_batches(source, seed, Slices(batch_size), 0, workers, torch.cuda.is_available())
    for _ in range(max(2, workers * PREFETCH)):
        next(batches)
    count = max(images // batch_size, 2 * workers * PREFETCH)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch_size / (time.perf_counter() - begin)


def measure(
    sources: dict[str, spheregen.ImageSource], arguments: argparse.Namespace, tell: Callable[[str], None]
) -> Any:
    """By workers: the rates of each source in each round."""
    rates: dict[int, dict[str, list[float]]] = {w: {name: [] for name in sources} for w in arguments.workers}
    for number in range(arguments.rounds):
        for workers in arguments.workers:
            names = list(sources) if number % 2 == 0 else list(sources)[::-1]
            for name in names:
                tell(f"round {number + 1} of {arguments.rounds}, {workers} workers, {name}")
                found = rate(sources[name], workers, arguments.batch_size, arguments.round_images, number)
                rates[workers][name].append(found)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=28, help="28: Fashion-MNIST; others: crops of photos")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--root", help="the folder of Fashion-MNIST's files, as the component's own option")
    parser.add_argument("--shard-images", type=int, default=1_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-images", type=int, default=4_000, help="images a round, at least")
    parser.add_argument(
        "--training-rate", type=float, help="images a second that training consumes, by spheregen bench"
    )
    parser.add_argument("--out", type=Path, help="write everything as JSON to this file")
    arguments = parser.parse_args()

    console = Console(highlight=False)
    fashion = arguments.size == 28
    with tempfile.TemporaryDirectory() as name, console.status("making files") as status:
        files, shards = Path(name) / "files", Path(name) / "shards"
        for label in range(CLASSES):
            (files / str(label)).mkdir(parents=True)
        if fashion:
            fashion_files(files, arguments.images, arguments.root)
        else:
            photo_files(files, arguments.images, arguments.size)
        options = {"image_size": arguments.size, "channels": 1 if fashion else 3, "classes": CLASSES}
        folder = spheregen.registry.get("data", "image-folder")
        source = folder(folder.Options(root=str(files), **options))
        packing = Packing(stored="keep", shard_images=arguments.shard_images)  # the same bytes: what differs is access
        status.update("packing")
        begin = time.perf_counter()
        spheregen.pack({"train": source}, shards, packing)
        packed = arguments.images / (time.perf_counter() - begin)
        component = spheregen.registry.get("data", "shards")
        sources = {"files": source, "shards": component(component.Options(root=str(shards), **options))}
        rates = measure(sources, arguments, status.update)

    table = Table("workers", "files", "shards", "shards ÷ files", "shards ÷ training", box=None, header_style="bold")
    rows = []
    for workers, found in rates.items():
        ratios = [b / a for a, b in zip(found["files"], found["shards"], strict=True)]
        medians = {name: statistics.median(values) for name, values in found.items()}
        share = medians["shards"] / arguments.training_rate if arguments.training_rate else None
        rows.append(
            {"workers": workers, **medians, "ratio": statistics.median(ratios), "training": share, "all": found}
        )
        table.add_row(
            str(workers),
            f"{medians['files']:,.0f}",
            f"{medians['shards']:,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
            "" if share is None else f"{share:,.1f}",
        )
    kind = f"{'PNG' if fashion else 'JPEG'} files of {arguments.size}×{arguments.size}"
    console.print(
        f"{arguments.images:,} {kind}, images a second, medians of {arguments.rounds} rounds; {os.cpu_count()} "
        f"processors, torch {torch.__version__}; packed at {packed:,.0f} a second"
    )
    console.print(table)
    if arguments.training_rate:
        best = max(row["shards"] for row in rows)
        met = best >= GOAL * arguments.training_rate
        goal = f"at least {GOAL:g} times what training consumes, {arguments.training_rate:g} a second"
        console.print(f"{'[green]met[/]   ' if met else '[red]missed[/]'} {goal}")
    if arguments.out:
        report = {key: value for key, value in vars(arguments).items() if key != "out"}
        arguments.out.write_text(
            json.dumps({**report, "packed": packed, "rows": rows}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
