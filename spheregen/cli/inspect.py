"""`spheregen inspect`: is the latent uniform, and are samples copies?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from spheregen.cli.console import console, find_run, out_folder, say, warn
from spheregen.cli.evaluate import Display
from spheregen.cli.options import pick_device
from spheregen.cli.sample import parse_classes
from spheregen.errors import DataError, RecipeError, SpheregenError

if TYPE_CHECKING:
    from spheregen.inspection import Inspection

FOLDER = "inspection"  # in the run folder


def inspect(
    run: Path | None = typer.Argument(None, help="A run folder; the newest under runs/ where none is named."),
    classes: list[str] = typer.Option(
        [], "--class", metavar="CLASS", help="A class by number or name, or a range (0-9); the first where none."
    ),
    count: int = typer.Option(500, min=10, help="Training images a class whose latents are looked at."),
    samples: int = typer.Option(
        200, min=2, help="Samples, and as many held-out images, to seek among training images."
    ),
    neighbours: int = typer.Option(5, min=1, help="Nearest training images shown of each."),
    among: int | None = typer.Option(None, min=1, help="Seek among so many training images; all where not given."),
    features: bool = typer.Option(False, "--features", help="Seek by features too, of the recipe's [features]."),
    steps: int | None = typer.Option(None, min=1, help="T of Algorithm 1; the recipe's where not given."),
    cfg: float | None = typer.Option(None, help="Guidance scale; the recipe's where not given."),
    seed: int = typer.Option(0, help="Same seed, same images, samples and projections."),
    batch_size: int = typer.Option(250, min=1, help="Images at a time; changes speed and memory alone."),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Look into a trained model: is the latent uniform, for each class alone, and are samples copies of images?

    Pictures and inspection.json go to RUN/inspection.
    """
    import torch

    from spheregen import checkpoint, generation, hub, inspection_pictures, pictures
    from spheregen.copies import find_copies
    from spheregen.evaluation import weights_of
    from spheregen.inspection import inspect_latents, labels_of
    from spheregen.reference import read_images, spaced

    path = find_run(run)
    device = pick_device(device)
    model = checkpoint.load(path, device=device, trust_plugins=trust_plugins)
    recipe = model.recipe
    assert recipe is not None
    known = model.shape.num_classes
    if classes and not known:
        raise SpheregenError("--class: this model is unconditional")
    chosen = parse_classes(classes, model.class_names) or list(range(min(known, recipe.sampling.classes)))
    extractor = recipe.features.build() if features else None
    training = recipe.data.build()
    try:
        held_out = recipe.held_out()
    except (RecipeError, DataError) as error:
        held_out = None
        warn(f"nothing to compare with: {error}")
    steps = steps or recipe.sampling.steps
    conditioner = generation.conditioner_for(model, cfg)
    with Display(True) as on_progress:
        found = inspect_latents(
            model, training, held_out=held_out, count=count, classes=chosen, seed=seed, batch_size=batch_size,
            on_progress=on_progress,
        )  # fmt: skip
        made = generation.sample(
            model, [chosen[i % len(chosen)] for i in range(samples)] if known else None,
            count=None if known else samples, steps=steps, guidance=cfg, seed=seed, batch_size=batch_size,
        )  # fmt: skip
        others = None
        if held_out is not None:
            # Of the samples' classes: one class lies closer together than another.
            like = torch.isin(labels_of(held_out), torch.tensor(chosen)) if known else torch.ones(len(held_out)).bool()
            numbers = like.nonzero().flatten()
            if len(numbers):
                others, _ = read_images(held_out, numbers[spaced(len(numbers), min(samples, len(numbers)))])
        copies = find_copies(
            made, training, others, neighbours=min(neighbours, len(training)), among=among, seed=seed,
            mirrored=recipe.training.flip > 0, extractor=extractor, device=device,
            batch_size=batch_size, on_progress=on_progress,
        )  # fmt: skip

    folder = out_folder(path) / FOLDER
    inspection_pictures.spheres(found, folder / "spheres.png", seed)
    inspection_pictures.latents(found, folder / "latents.png")
    inspection_pictures.distances(copies, folder / "distances.png")
    (folder / "neighbours-features.png").unlink(missing_ok=True)  # of an earlier inspection
    for each in copies:
        name = "neighbours.png" if each.measure == "pixels" else "neighbours-features.png"
        pictures.save(inspection_pictures.neighbours(each, made, others, training), folder / name)
    report = {
        "weights": weights_of(checkpoint.RunFolder(hub.local(path))),
        "settings": {
            "seed": seed, "count": count, "samples": samples, "steps": steps, "among": min(among or len(training),
            len(training)), "guidance": getattr(conditioner.options, "scale", 1.0), "position": conditioner.name,
        },
        "latents": found.as_dict(),
        "copies": [each.as_dict() for each in copies],
    }  # fmt: skip
    with checkpoint.replacing(folder / "inspection.json") as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    assert torch.isfinite(made).all()
    show(found, report["copies"])
    say(f"→ {escape(str(folder))}: spheres.png, latents.png, neighbours.png, distances.png, inspection.json")


def show(found: Inspection, copies: Any) -> None:
    """The figures as tables, with a line on how to read each."""
    from spheregen.inspection_pictures import chance

    heads = ("class", "images", "R̄", "uniform", "Rayleigh", "views", "Bingham", "‖z‖/√L", "E(D(v))")
    table = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for each in found.classes:
        table.add_row(
            escape(each.name), str(each.count), f"{each.resultant:.3f}", f"{each.count**-0.5:.3f}",
            chance(each.rayleigh.p), chance(each.projected.p), chance(each.bingham.p), f"{each.lengths.mean():.3g}",
            f"{each.angles.mean():.1f}°",
        )  # fmt: skip
    overall = found.overall
    together = [chance(overall[name].p) for name in ("rayleigh", "projected", "bingham")]
    if len(found.classes) > 1:
        table.add_row("together", str(sum(each.count for each in found.classes)), "", "", *together, style="bold")
    console.print(table)
    for name, count in found.passed_over.items():
        warn(f"class {name}: passed over, it has {count} images")
    say(
        "[dim]R̄: length of the mean direction, and what it is for as many uniform latents. p-values, that is how often "
        "uniform latents depart as far: Rayleigh for a preferred side, views for 16 projections as in spheres.png, "
        "Bingham for preferred axes in all dimensions. E(D(v)): angle from a latent to its re-encoding[/]"
    )
    if found.held_out_angles is not None:
        say(f"[dim]re-encoding of held-out images: {found.held_out_angles.mean():.1f}° on average[/]")
    console.print()
    columns = ("nearest training image", "samples", "held out", "sample is nearer", "p")
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for each in copies:
        theirs = each.get("held_out")
        table.add_row(
            f"by {each['measure']}",
            f"{each['samples']['median']:.3g} ({each['samples']['smallest']:.3g})",
            f"{theirs['median']:.3g} ({theirs['smallest']:.3g})" if theirs else "",
            f"{each['sample_is_nearer']:.0%}" if theirs else "",
            chance(each["p"]) if theirs else "",
        )
        if each.get("held_out_in_training"):
            warn(f"{each['held_out_in_training']} held-out images are training images too: "
                 f"the comparison by {each['measure']} says little")  # fmt: skip
    console.print(table)
    say(
        "[dim]distances: median (smallest). 50%: samples are as far from the training images as held-out images are. "
        "Far above: they are copies, or smoother than real images; neighbours.png tells which[/]"
    )
