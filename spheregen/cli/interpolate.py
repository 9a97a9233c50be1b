"""`spheregen interpolate`: images between two ends, or among four corners."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.markup import escape

from spheregen.cli.console import console, find_run, out_folder, say
from spheregen.cli.options import IMAGE_HELP, SINGLES_HELP, pick_device, pick_images, pick_sampler
from spheregen.cli.sample import parse_classes
from spheregen.errors import SpheregenError

if TYPE_CHECKING:
    from spheregen.model import SphereModel

MOVING = 24  # frames of the animation from end to end
T = TypeVar("T")


class Way(StrEnum):
    linear = "linear"
    great_circle = "great-circle"


class Animation(StrEnum):
    webp = "webp"
    gif = "gif"
    none = "none"


def interpolate(
    run: Path | None = typer.Argument(None, help="A run folder; the newest under runs/ where none is named."),
    classes: list[str] = typer.Option(
        [],
        "--class",
        metavar="CLASS",
        help="The class of an end, by number or name; repeat: one for all ends, one a column, or one an end. Classes "
        "by chance where none is named; the null class for images.",
    ),
    images: list[str] = typer.Option([], "--image", metavar="IMAGE", help=f"An end. {IMAGE_HELP} Repeat, one an end."),
    picks: list[int] = typer.Option(
        [], "--pick", min=0, help="An end: the sample that `spheregen sample` numbers so, with the same seed and class."
    ),
    corners: bool = typer.Option(False, "--corners", help="A square among four corners in place of rows between two."),
    rows: int | None = typer.Option(None, min=1, help="Rows, each between two ends; 4 where nothing else says."),
    frames: int = typer.Option(8, min=2, help="Images from end to end."),
    at: list[float] = typer.Option(
        [], help="In place of frames: where between the ends, from 0 to 1; repeat for more."
    ),
    path: Way = typer.Option(Way.linear, help="Linear, then onto the sphere; or at a steady angle along it."),
    steps: int | None = typer.Option(None, min=1, help="T of Algorithm 1; the recipe's, and 1 from images."),
    cfg: float = typer.Option(1.0, help="Guidance scale; 1 is none, as in the paper."),
    cfg_position: str | None = typer.Option(None, help="Where to guide: latent, pixel, combo or none."),
    sampler: str | None = typer.Option(None, help="fixed, decay, or a plugin's; the recipe's where not given."),
    sampler_option: list[str] = typer.Option(
        [], "--sampler-set", metavar="KEY=VALUE", help="An option of the sampler: gamma=1, noise=independent, r=0.5."
    ),
    seed: int = typer.Option(0, help="Same seed, same images."),
    out: Path | None = typer.Option(None, help="The picture to write; one in the run's samples/ where not given."),
    animation: Animation = typer.Option(Animation.webp, help="Also an animation, there and back, beside the picture."),
    singles: bool = typer.Option(False, "--singles", help=SINGLES_HELP),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Interpolate latents and classes between samples, or between images: a strip a row, or a square with the ends in
    its corners, and an animation."""  # fmt: skip
    import torch

    from spheregen import checkpoint, editing, editing_pictures, pictures

    folder = find_run(run)
    model = checkpoint.load(folder, device=pick_device(device), trust_plugins=trust_plugins)
    assert model.recipe is not None
    if corners and rows is not None:
        raise SpheregenError("--rows: the square of --corners has none")
    if picks and images:
        raise SpheregenError("--pick: ends are samples or images; leave out --pick or --image")
    if at and corners:
        raise SpheregenError("--at: lies between two ends; leave out --corners")
    if classes and not model.shape.num_classes:
        raise SpheregenError("--class: this model is unconditional")
    labels = parse_classes(classes, model.class_names)
    width = 4 if corners else 2
    given = len(images or picks or (labels[2:] and labels))
    count = 4 if corners else 2 * rows if rows else max(2, given) if given else 8
    if labels:
        labels = spread(labels, {1, width, count}, count, "--class")
    elif not images and model.shape.num_classes:
        labels = by_chance(model, count, seed)
    numbers = spread(picks, {count}, count, "--pick") if picks else list(range(count))
    files = spread(images, {count}, count, "--image") if images else []
    ends = pick_images(model, files) if files else None
    settings: dict[str, Any] = {
        "path": str(path), "steps": steps, "guidance": cfg, "position": cfg_position, "seed": seed,
        "sampler": pick_sampler(model, sampler, sampler_option),
    }  # fmt: skip

    def between(at: Any) -> list[torch.Tensor]:
        """Of each row, or of the square, the frames."""
        groups = [slice(i, i + width) for i in range(0, count, width)]
        return [
            editing.interpolate(
                model, labels[g] if labels else None, images=ends[g] if ends is not None else None,
                picks=None if ends is not None else numbers[g], frames=frames, at=at, **settings,
            )
            for g in groups
        ]  # fmt: skip

    out = out or out_folder(folder) / "samples" / f"interpolation-{'corners' if corners else 'rows'}-seed{seed}.png"
    names = [model.class_names[label] if label < model.shape.num_classes else "" for label in labels or []]
    with console.status("interpolating"):
        found = torch.cat(between(at or None))
        titles = [f"{a} to {b}" if a != b else a for a, b in zip(names[::2], names[1::2], strict=True)]
        square = found.unflatten(0, (-1, len(at) or frames))  # a row of frames a row of the picture
        if ends is not None:  # the images themselves stand outside of what is made of them
            square = editing_pictures.surround(square, ends, corners)
        columns = square.shape[1]
        sides = [i for i in range(len(square) * columns) if i % columns in (0, columns - 1)]
        if corners:
            sides = [*sides[:2], *sides[-2:]]
            places = dict(zip(sides, names, strict=False))
            captions = [places.get(i, "") for i in range(len(square) * columns)]
            picture = pictures.grid(square.flatten(0, 1), columns, captions=captions, framed=sides)
        else:
            picture = pictures.grid(square.flatten(0, 1), columns, titles, framed=sides)
        pictures.save(picture, out)
        if singles:
            pictures.save_singles(found, pictures.folder_beside(out))
        say(f"{len(found)} images, {path}, {steps or (1 if images else model.recipe.sampling.steps)} steps, "
            f"guidance {cfg:g}, seed {seed} → {escape(str(out))}")  # fmt: skip
        if animation is not Animation.none:
            moving = out.with_suffix(f".{animation}")
            if corners:
                shown = editing_pictures.around(
                    between(at=editing_pictures.edges(MOVING // 2))[0], square[[0, 0, -1, -1], [0, -1, 0, -1]]
                )
            else:
                line = torch.linspace(0, 1, MOVING)
                shown = editing_pictures.there_and_back(torch.stack(between(at=line)), square[:, [0, -1]], titles)
            pictures.save_animation(shown, moving)
            say(f"{len(shown)} frames → {escape(str(moving))}")


def spread(given: list[T], allowed: set[int], count: int, option: str) -> list[T]:
    """One an end, repeated from fewer where so many are allowed."""
    if len(given) not in allowed or count % 2:
        expected = " or ".join(map(str, sorted(allowed))) if count % 2 == 0 else "an even number, two a row"
        raise SpheregenError(f"{option}: expected {expected}, got {len(given)}")
    return given * (count // len(given))


def by_chance(model: SphereModel, count: int, seed: int) -> list[int]:
    """Classes for the ends, all different while there are enough."""
    import torch

    from spheregen import rng

    order = torch.randperm(model.shape.num_classes, generator=rng.generator(seed, "interpolate")).tolist()
    return [order[i % len(order)] for i in range(count)]
