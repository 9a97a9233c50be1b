"""`spheregen compare`: the same noise under other steps, guidance and samplers, side by side."""

from __future__ import annotations

from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from spheregen.cli.console import console, find_run, out_folder, say
from spheregen.cli.evaluate import named_sampler, numbers
from spheregen.cli.options import pick_device, pick_sampler
from spheregen.cli.sample import parse_classes
from spheregen.errors import SpheregenError
from spheregen.tables import counted, way

if TYPE_CHECKING:
    from spheregen.interfaces import Sampler

WIDE = 16  # images beside each other, where blocks of samples are laid out in rows


class By(StrEnum):
    setting = "setting"
    sample = "sample"


def compare(
    run: Path | None = typer.Argument(None, help="A run folder; the newest under runs/ where none is named."),
    classes: list[str] = typer.Option(
        [], "--class", metavar="CLASS", help="A class by number or name, or a range (0-9); repeat for more."
    ),
    count: int = typer.Option(4, min=1, help="Images a class (in all, for a model without classes)."),
    steps: str = typer.Option("1,2,4,6", help="Steps to sample with."),
    cfg: str = typer.Option("1", help="Guidance scales, as 1,1.4; 1 is none."),
    cfg_position: str | None = typer.Option(None, help="Where to guide: latent, pixel, combo or none."),
    sampler: list[str] = typer.Option(
        [], metavar="NAME[:KEY=VALUE,…]", help="A sampler, as fixed:noise=independent; repeat for more."
    ),
    by: By = typer.Option(
        By.setting, help="A block of images a setting, a row a class; or a block a sample, a column a number of steps."
    ),
    seed: int = typer.Option(0, help="Same seed, same images."),
    out: Path | None = typer.Option(None, help="The picture to write; one in the run's samples/ where not given."),
    batch_size: int = typer.Option(256, min=1, help="Images at a time; changes speed and memory, not the images."),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Sample from the same noise with every combination of steps, guidance and sampler: one labelled picture."""
    from spheregen import checkpoint, generation, pictures

    folder = find_run(run)
    model = checkpoint.load(folder, device=pick_device(device), trust_plugins=trust_plugins)
    assert model.recipe is not None
    if classes and not model.shape.num_classes:
        raise SpheregenError("--class: this model is unconditional; give --count alone")
    labels: list[int] | None = None
    if model.shape.num_classes:
        shown = min(model.shape.num_classes, model.recipe.sampling.classes)
        chosen = parse_classes(classes, model.class_names) or list(range(shown))
        labels = [label for label in chosen for _ in range(count)]
    lengths = numbers("--steps", steps, int)
    scales = numbers("--cfg", cfg, float)
    samplers = [pick_sampler(model, *named_sampler(text)) for text in sampler] or [pick_sampler(model, None, [])]
    ways = list(product(samplers, scales))
    with console.status("sampling"):
        made = [
            [
                generation.sample(
                    model, labels, count=None if labels else count, steps=length, guidance=scale if labels else None,
                    position=cfg_position, sampler=chosen_sampler, seed=seed, batch_size=batch_size,
                )
                for length in lengths
            ]
            for chosen_sampler, scale in ways
        ]  # fmt: skip
    names = [model.class_names[label] for label in labels] if labels else [""] * count
    told = [named(each, scale, len(samplers) > 1, len(scales) > 1) for each, scale in ways]
    if by is By.setting:
        blocks = [
            [
                pictures.grid(
                    images, min(count, WIDE), names[::count] if labels and first else (),
                    title=", ".join(filter(None, (counted(length, "step"), how))),
                )
                for first, length, images in zip([True, *[False] * len(lengths)], lengths, row, strict=False)
            ]
            for how, row in zip(told, made, strict=True)
        ]  # fmt: skip
    else:
        import torch

        heads = [counted(length, "step") for length in lengths]
        every = torch.stack([torch.stack(row) for row in made]).movedim(2, 0)  # samples, ways, steps
        wide = max(1, WIDE // len(lengths))
        blocks = [
            [
                pictures.grid(every[i].flatten(0, 1), len(lengths), told if i == start else (), heads, title=names[i])
                for i in range(start, min(start + wide, len(every)))
            ]
            for start in range(0, len(every), wide)
        ]
    out = out or out_folder(folder) / "samples" / f"compare-{by}-seed{seed}.png"
    pictures.save(pictures.beside(blocks), out)
    total = sum(len(images) for row in made for images in row)
    say(f"{total} images, {counted(len(ways) * len(lengths), 'setting')}, seed {seed} → {escape(str(out))}")


def named(sampler: Sampler, scale: float, several_samplers: bool, several_scales: bool) -> str:
    """What tells a way of sampling from the others."""
    settings = {"use": sampler.name, **sampler.options.model_dump(mode="json")}
    # In ASCII, since the pictures' font has no Greek letters.
    words = [way({"sampler": settings, "guidance": 1}).replace("γ=", "gamma ")] if several_samplers else []
    words += ["no guidance" if scale == 1 else f"guidance {scale:g}"] if several_scales else []
    return ", ".join(words)
