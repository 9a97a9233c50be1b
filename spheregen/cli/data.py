"""`spheregen data`: image sets as files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from spheregen.cli.console import console, say, warn
from spheregen.errors import DataError, RecipeError

if TYPE_CHECKING:
    from spheregen.recipe import Section
    from spheregen.shard_index import ShardIndex

app = typer.Typer(help="Image sets as files.", no_args_is_help=True)


class Format(StrEnum):
    png = "png"
    jpg = "jpg"


class Unreadable(StrEnum):
    refuse = "refuse"
    skip = "skip"


@app.command("pack")
def pack(
    images: str = typer.Argument(
        metavar="RECIPE_OR_FOLDER",
        help="A recipe, whose data are packed, or a folder of images (image-folder; its options by --set).",
    ),
    out: Path = typer.Argument(metavar="OUT", help="The folder to make."),
    set_: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe."),
    format_: Format = typer.Option(Format.png, "--format", help="png keeps every pixel; jpg is smaller."),
    quality: int = typer.Option(95, min=1, max=95, help="Of jpg."),
    keep: bool = typer.Option(False, "--keep", help="Take the files as they are, neither cropped nor compressed anew."),
    shard_mb: float = typer.Option(256.0, min=0.001, help="Largest shard, in 10⁶ bytes."),
    shard_images: int | None = typer.Option(None, min=1, help="Most images a shard."),
    shuffle: bool = typer.Option(
        True, help="Pack in a random order, so that each shard mixes the classes: training reads a few at a time."
    ),
    seed: int = typer.Option(0, help="Of that order."),
    on_error: Unreadable | None = typer.Option(
        None, help="At an unreadable image: refuse, or skip and count. By default as the recipe says, or else refuse."
    ),
    workers: int = typer.Option(0, min=0, help="Processes that read and encode images."),
) -> None:
    """Pack images into webdataset shards with an index, the training split and, where there is one, the test split.

    The folder appears when it is whole; after an interruption the same command starts again.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from spheregen.packing import Packing
    from spheregen.packing import pack as write

    section = data_section(images, set_)
    at_fault = on_error or getattr(section.options, "on_error", None)
    packing = Packing(
        stored="keep" if keep else format_.value,
        quality=quality,
        shard_bytes=round(shard_mb * 1e6),
        shard_images=shard_images,
        shuffle=shuffle,
        seed=seed,
        skip=at_fault == Unreadable.skip,
        workers=workers,
    )
    sources = splits(section)
    for left in out.parent.glob(f".{out.name}.*"):
        warn(f"{left}: left from an attempt that was killed, or one is still under way; remove it if none is")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {name: progress.add_task(name, total=len(source)) for name, source in sources.items()}
        indices = write(sources, out, packing, lambda name, done, _: progress.update(tasks[name], completed=done))
    for name, index in indices.items():
        tell(name, index)
    say(f"→ {escape(str(out))}")
    spec = sources["train"].spec
    settings = {
        "use": "shards",
        "root": out,
        "image_size": spec.size,
        "channels": spec.channels,
        "classes": spec.num_classes,
    }
    words = (f"--set data.{key}={value}" for key, value in settings.items())
    say(f"[dim]to train on it: {escape(' '.join(words))}[/]")


def data_section(images: str, settings: list[str]) -> Section:
    """The [data] section of a recipe, or one of image-folder for a folder."""
    from spheregen.recipe import Recipe, read_section
    from spheregen.recipe_files import Origins, override_all

    if not Path(images).is_dir():
        return Recipe.read(images, settings).data
    origins = Origins(images)
    tables: dict[str, Any] = {"data": {"use": "image-folder", "root": images}}
    override_all(tables, settings, origins)
    if others := [key for key in tables if key != "data"]:
        raise RecipeError(f"--set {others[0]}.…: a folder of images has the section data alone")
    try:
        return read_section("data", tables["data"], origins)
    except RecipeError as error:
        lines = (
            f"{line} (--set data.KEY=VALUE)" if line.endswith("is missing") else line for line in str(error).split("\n")
        )
        raise RecipeError("\n".join(lines)) from None


def splits(section: Section) -> dict[str, Any]:
    """The sources to pack: the section's own as train, and its test split where it has one."""
    from spheregen.recipe import Section

    options = section.options
    if getattr(options, "on_error", None) == "skip":
        # Training passes over an unreadable image by taking another twice; here it is left out.
        options = options.model_copy(update={"on_error": "refuse"})
    sources = {"train": Section(section.component, options).build()}
    if "split" in section.component.Options.model_fields and options.split != "test":
        try:
            sources["test"] = section.component(options.model_copy(update={"split": "test"}))
        except DataError as error:
            warn(f"no test split is packed: {error}")
    return sources


def tell(name: str, index: ShardIndex) -> None:
    """One line on a set that was packed."""
    size = sum(shard.bytes for shard in index.shards)
    classes = f", {len(index.class_names)} classes" if index.class_names else ""
    left = f", [yellow]{index.left_out:,} unreadable left out[/]" if index.left_out else ""
    say(f"{name}: {index.images:,} images{classes} in {len(index.shards):,} shards, {size / 1e6:,.1f} MB{left}")
