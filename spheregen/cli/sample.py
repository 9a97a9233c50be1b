"""`spheregen sample`: images from a trained model."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import console, find_run, out_folder, say
from spheregen.errors import SpheregenError


def sample(
    run: Path | None = typer.Argument(None, help="A run folder; the newest under runs/ where none is named."),
    classes: list[str] = typer.Option(
        [], "--class", metavar="CLASS", help="A class by number or name, or a range (0-9); repeat for more."
    ),
    count: int = typer.Option(8, min=1, help="Images a class (in all, for a model without classes)."),
    steps: int | None = typer.Option(None, min=1, help="T of Algorithm 1; the recipe's where not given."),
    cfg: float | None = typer.Option(None, help="Guidance scale; 1 is none. The recipe's where not given."),
    cfg_position: str | None = typer.Option(None, help="Where to guide: latent, pixel, combo or none."),
    sampler: str | None = typer.Option(None, help="fixed, decay, or a plugin's; the recipe's where not given."),
    sampler_option: list[str] = typer.Option(
        [], "--sampler-set", metavar="KEY=VALUE", help="An option of the sampler: gamma=1, noise=independent, r=0.5."
    ),
    seed: int = typer.Option(0, help="Same seed, same images."),
    out: Path | None = typer.Option(None, help="Folder for the pictures; one in the run's samples/ where not given."),
    singles: bool = typer.Option(True, help="Write every image as a file of its own, beside the grid."),
    batch_size: int = typer.Option(256, min=1, help="Images at a time; changes speed and memory, not the images."),
    precision: str = typer.Option("fp32", help="fp32, or bf16: faster where native, images a little different."),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Sample a trained model: a labelled grid, and single images."""
    import torch

    from spheregen import checkpoint, generation, pictures
    from spheregen.cli.options import pick_device, pick_sampler

    folder = find_run(run)
    model = checkpoint.load(folder, device=pick_device(device), trust_plugins=trust_plugins)
    assert model.recipe is not None
    names = model.class_names
    labels: list[int] | None = None
    if model.shape.num_classes:
        shown = min(model.shape.num_classes, model.recipe.sampling.classes)
        chosen = parse_classes(classes, names) or list(range(shown))
        labels = [label for label in chosen for _ in range(count)]
    elif classes:
        raise SpheregenError("--class: this model is unconditional; give --count alone")
    conditioner = generation.conditioner_for(model, cfg, cfg_position)
    steps = steps or model.recipe.sampling.steps
    scale = conditioner.options.scale if hasattr(conditioner.options, "scale") else 1
    out = out or out_folder(folder) / "samples" / f"steps{steps}-cfg{scale:g}-seed{seed}"
    with console.status("sampling"):
        images = generation.sample(
            model, labels, count=None if labels else count, steps=steps, guidance=cfg, position=cfg_position,
            sampler=pick_sampler(model, sampler, sampler_option), seed=seed, batch_size=batch_size,
            precision=precision,  # type: ignore[arg-type]  # it checks
        )  # fmt: skip
    row_labels = [names[label] for label in labels[::count]] if labels else []
    out.mkdir(parents=True, exist_ok=True)
    picture = pictures.grid(images, count if labels else min(count, 8), row_labels)
    with checkpoint.replacing(out / "grid.png") as aside:
        picture.save(aside, format="PNG")
    if singles:
        pictures.save_singles(images, out, [names[label] for label in labels or []])
    passes = generation.network_passes(steps, conditioner)
    say(
        f"{len(images)} images, {steps} steps ({passes} network passes), guidance {scale:g}, seed {seed} "
        f"→ {escape(str(out / 'grid.png'))}"
    )
    assert torch.isfinite(images).all()


def parse_classes(words: list[str], names: list[str]) -> list[int]:
    """Labels from numbers, ranges and names."""
    labels: list[int] = []
    by_name = {name.casefold(): label for label, name in enumerate(names)}
    for word in words:
        numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if word.casefold() in by_name:
            labels.append(by_name[word.casefold()])
        elif numbers and int(numbers[2] or numbers[1]) < len(names):
            labels += range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1)
        else:
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            raise SpheregenError(f"--class {word}: this model knows 0 to {len(names) - 1} ({shown})")
    return labels
