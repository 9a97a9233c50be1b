"""`spheregen crossover`: two images stitched and made one."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import console, find_run, out_folder, say
from spheregen.cli.options import IMAGE_HELP, SINGLES_HELP, pick_device, pick_images
from spheregen.cli.restyle import tag
from spheregen.cli.sample import parse_classes
from spheregen.tables import counted


def crossover(
    first: str = typer.Argument(help=IMAGE_HELP),
    second: str = typer.Argument(help="The other."),
    run: Path | None = typer.Option(None, help="A run folder; the newest under runs/ where none is named."),
    seams: list[str] = typer.Option(
        [], "--seam", help="left-right, top-bottom, falling or rising (diagonal); repeat for more, all where none."
    ),
    mask: Path | None = typer.Option(
        None, help="An image in place of a seam: white shows the first, black the second."
    ),
    class_: str | None = typer.Option(None, "--class", metavar="CLASS", help="A class; none where not given."),
    steps: int = typer.Option(10, min=1, help="Rounds of encoding and decoding."),
    strength: float = typer.Option(0.25, min=0, help="r of Eq. 5: how far noise may lead away."),
    gamma: float = typer.Option(1.0, min=0, help="γ of Eq. 13: how the noise falls over the steps; 0 keeps it."),
    cfg: float = typer.Option(1.0, help="Guidance scale; 1 is none, as in the paper."),
    cfg_position: str | None = typer.Option(None, help="Where to guide: latent, pixel, combo or none."),
    seed: int = typer.Option(0, help="Same seed, same images."),
    out: Path | None = typer.Option(None, help="The picture to write; one in the run's samples/ where not given."),
    singles: bool = typer.Option(False, "--singles", help=SINGLES_HELP),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Stitch two images and let the model make them one, step by step: a row a seam."""
    import torch

    from spheregen import checkpoint, editing, pictures
    from spheregen.images import read_image

    folder = find_run(run)
    model = checkpoint.load(folder, device=pick_device(device), trust_plugins=trust_plugins)
    a, b = pick_images(model, [first, second])
    masks: dict[str, torch.Tensor] = {}
    if mask is not None:
        masks["mask"] = read_image(mask, model.shape.image.size, 1).float() / 255
    for seam in seams or ([] if mask else editing.SEAMS):
        masks[seam] = editing.stitch(torch.ones_like(a), torch.zeros_like(a), seam)
    count = len(masks)
    labels = None
    if class_ is not None:
        labels = (parse_classes([class_], model.class_names) * count)[:count]
    with console.status("crossing"):
        made = editing.crossover(
            model, a.expand(count, *a.shape), b.expand(count, *b.shape),
            torch.stack([x.expand_as(a) for x in masks.values()]), labels=labels,
            steps=steps, strength=strength, gamma=gamma, guidance=cfg, position=cfg_position, seed=seed,
        )  # fmt: skip
    sources = torch.stack([a, b]).expand(count, 2, *a.shape)
    tiles = torch.cat([sources, made.transpose(0, 1)], dim=1)
    columns = tiles.shape[1]
    heads = ["first", "second", "stitched", *(counted(t, "step") for t in range(1, steps + 1))]
    framed = [i for i in range(count * columns) if i % columns < 2]
    picture = pictures.grid(tiles.flatten(0, 1), columns, list(masks), heads, framed=framed)
    out = out or out_folder(folder) / "samples" / f"crossover-{tag(first)}-{tag(second)}.png"
    pictures.save(picture, out)
    if singles:
        pictures.save_singles(made[-1], pictures.folder_beside(out), list(masks))
    how = f"{steps} steps, r {strength:g}, γ {gamma:g}, guidance {cfg:g}, seed {seed}"
    say(f"{escape(', '.join(masks))}: {how} → {escape(str(out))}")
