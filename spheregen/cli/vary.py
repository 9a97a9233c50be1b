"""`spheregen vary`: variations of an image."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import console, find_run, out_folder, say
from spheregen.cli.options import IMAGE_HELP, SINGLES_HELP, pick_device, pick_images, pick_sampler
from spheregen.cli.restyle import tag
from spheregen.cli.sample import parse_classes


def vary(
    image: str = typer.Argument(help=IMAGE_HELP),
    run: Path | None = typer.Option(None, help="A run folder; the newest under runs/ where none is named."),
    degrees: list[float] = typer.Option(
        [],
        "--degrees",
        min=0,
        max=180,
        help="How far to turn the latent; repeat for a row each. 10, 20, 40 if not given.",
    ),
    count: int = typer.Option(8, min=1, help="Variations an angle."),
    class_: str | None = typer.Option(None, "--class", metavar="CLASS", help="A class; none where not given."),
    steps: int = typer.Option(1, min=1, help="T of Algorithm 1, from the turned latents on."),
    cfg: float = typer.Option(1.0, help="Guidance scale; 1 is none."),
    cfg_position: str | None = typer.Option(None, help="Where to guide: latent, pixel, combo or none."),
    sampler: str | None = typer.Option(None, help="fixed, decay, or a plugin's; the recipe's where not given."),
    sampler_option: list[str] = typer.Option(
        [], "--sampler-set", metavar="KEY=VALUE", help="An option of the sampler: gamma=1, noise=independent, r=0.5."
    ),
    seed: int = typer.Option(0, help="Same seed, same directions: more degrees lead farther along each."),
    out: Path | None = typer.Option(None, help="The picture to write; one in the run's samples/ where not given."),
    singles: bool = typer.Option(False, "--singles", help=SINGLES_HELP),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Turn an image's latent by an angle in random directions: a row an angle."""
    import torch

    from spheregen import checkpoint, editing, pictures

    folder = find_run(run)
    model = checkpoint.load(folder, device=pick_device(device), trust_plugins=trust_plugins)
    angles = degrees or [10.0, 20.0, 40.0]
    original = pick_images(model, [image])
    labels = parse_classes([class_], model.class_names)[:1] if class_ is not None else None
    with console.status("varying"):
        made = torch.stack(
            [
                editing.vary(
                    model, original, labels, degrees=angle, count=count, steps=steps, guidance=cfg,
                    position=cfg_position, sampler=pick_sampler(model, sampler, sampler_option), seed=seed,
                )[0]
                for angle in angles
            ]
        )  # fmt: skip
    columns = count + 1
    tiles = torch.cat([original.expand(len(angles), 1, *original.shape[1:]), made], dim=1).flatten(0, 1)
    picture = pictures.grid(
        tiles, columns, [f"{angle:g}°" for angle in angles], ["input"], framed=range(0, len(tiles), columns)
    )
    out = out or out_folder(folder) / "samples" / f"vary-{tag(image)}.png"
    pictures.save(picture, out)
    if singles:
        pictures.save_singles(made.flatten(0, 1), pictures.folder_beside(out))
    how = f"{steps} steps, guidance {cfg:g}, seed {seed}"
    say(f"{', '.join(f'{angle:g}' for angle in angles)} degrees, {count} each, {how} → {escape(str(out))}")
