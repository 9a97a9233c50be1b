"""`spheregen restyle`: an image as other classes."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import console, find_run, out_folder, say
from spheregen.cli.options import IMAGE_HELP, SINGLES_HELP, pick_device, pick_images
from spheregen.cli.sample import parse_classes
from spheregen.tables import counted


def restyle(
    image: str = typer.Argument(help=IMAGE_HELP),
    classes: list[str] = typer.Option(
        [], "--class", metavar="CLASS", help="A class by number or name, or a range (0-9); repeat for more."
    ),
    run: Path | None = typer.Option(None, help="A run folder; the newest under runs/ where none is named."),
    steps: int = typer.Option(4, min=1, help="Rounds of encoding and decoding."),
    strength: float = typer.Option(1.0, min=0, help="r of Eq. 5: how far noise may lead away from the image."),
    gamma: float = typer.Option(0.0, min=0, help="γ of Eq. 13: how the noise falls over the steps; 0 keeps it."),
    cfg: float = typer.Option(1.0, help="Guidance scale; 1 is none, as in the paper."),
    cfg_position: str | None = typer.Option(None, help="Where to guide: latent, pixel, combo or none."),
    seed: int = typer.Option(0, help="Same seed, same images."),
    out: Path | None = typer.Option(None, help="The picture to write; one in the run's samples/ where not given."),
    singles: bool = typer.Option(False, "--singles", help=SINGLES_HELP),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Turn an image into other classes, step by step: a row a class."""
    from spheregen import checkpoint, editing, pictures

    folder = find_run(run)
    model = checkpoint.load(folder, device=pick_device(device), trust_plugins=trust_plugins)
    assert model.recipe is not None
    shown = min(model.shape.num_classes, model.recipe.sampling.classes)
    labels = parse_classes(classes, model.class_names) if classes else list(range(shown))
    with console.status("restyling"):
        made = editing.restyle(
            model, pick_images(model, [image]), labels, steps=steps, strength=strength, gamma=gamma, guidance=cfg,
            position=cfg_position, seed=seed,
        )  # fmt: skip
    columns = steps + 1
    heads = ["input", *(counted(t, "step") for t in range(1, columns))]
    picture = pictures.grid(
        made.transpose(0, 1).flatten(0, 1), columns, [model.class_names[label] for label in labels], heads,
        framed=range(0, len(labels) * columns, columns),
    )  # fmt: skip
    out = out or out_folder(folder) / "samples" / f"restyle-{tag(image)}.png"
    pictures.save(picture, out)
    if singles:
        pictures.save_singles(made[-1], pictures.folder_beside(out), [model.class_names[label] for label in labels])
    say(f"{len(labels)} classes, {steps} steps, r {strength:g}, guidance {cfg:g}, seed {seed} → {escape(str(out))}")


def tag(image: str) -> str:
    """An image's name as part of a file's name: photo.jpg -> photo, test:7 -> test7."""
    return re.sub(r"[^\w-]+", "", Path(image).stem) or "image"
