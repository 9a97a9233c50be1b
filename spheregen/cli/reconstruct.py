"""`spheregen reconstruct`: images through the encoder and back."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import find_run, out_folder, say, warn
from spheregen.cli.options import IMAGE_HELP, SINGLES_HELP, pick_device, pick_images
from spheregen.errors import RecipeError


def reconstruct(
    run: Path | None = typer.Argument(None, help="A run folder; the newest under runs/ where none is named."),
    images: list[str] = typer.Option([], "--image", metavar="IMAGE", help=f"{IMAGE_HELP} Repeat for more."),
    count: int = typer.Option(8, min=1, help="Without --image: so many images of the data set's test split."),
    out: Path | None = typer.Option(None, help="The picture to write; one in the run's samples/ where not given."),
    singles: bool = typer.Option(False, "--singles", help=SINGLES_HELP),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Encode and decode images without noise: originals above, reconstructions below."""
    import torch

    from spheregen import checkpoint, generation, pictures
    from spheregen.reference import spaced

    folder = find_run(run)
    model = checkpoint.load(folder, device=pick_device(device), trust_plugins=trust_plugins)
    assert model.recipe is not None
    if not images:
        try:
            split, source = "test", model.recipe.held_out()
        except RecipeError as error:
            warn(f"reconstructing training images: {error}")
            split, source = "train", model.recipe.data.build()
        total = len(source)
        images = [f"{split}:{i}" for i in spaced(total, min(count, total)).tolist()]
    originals = pick_images(model, images)
    results = generation.reconstruct(model, originals)
    psnr = -10 * torch.log10((originals - results).square().flatten(1).mean(1).clamp(min=1e-10))
    rows = ["original", "decoded"]
    picture = pictures.grid(torch.cat([originals, results]), len(originals), rows)
    out = out or out_folder(folder) / "samples" / "reconstructions.png"
    pictures.save(picture, out)
    if singles:
        pictures.save_singles(results, pictures.folder_beside(out))
    say(f"{len(originals)} images, PSNR {psnr.mean():.2f} dB (mean) → {escape(str(out))}")
