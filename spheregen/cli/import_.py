"""`spheregen import`: weights made with the paper's authors' training code."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import console, say, warn


class Weights(StrEnum):
    """The state dicts of a checkpoint."""

    model = "model"
    ema_model = "ema_model"


def import_(
    checkpoint: Path = typer.Argument(help="The .pth file. Nothing pickled in it is run."),
    recipe: str = typer.Option(help="The recipe that it was trained by: a file, or the name of a shipped one."),
    run: Path = typer.Option(help="The run folder to write: a new or an empty one."),
    set_: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe."),
    weights: Weights = typer.Option(Weights.model, help="The trained weights, or their moving average."),
) -> None:
    """Make a run folder of a checkpoint that the paper's authors' code made. What does not fit is listed, and nothing
    written."""
    from spheregen.importing import import_checkpoint
    from spheregen.recipe import Recipe

    resolved = Recipe.read(recipe, set_)
    with console.status("importing"):
        done = import_checkpoint(checkpoint, resolved, run, weights.value)
    parameters = sum(p.numel() for p in done.model.parameters())
    epoch = "" if done.epoch is None else f", epoch {done.epoch}"
    if not done.named:
        warn(f"the data of {resolved.name} is not at hand: the class names are numbers")
    folder = escape(str(run))
    say(f"{parameters / 1e6:.1f}M parameters{epoch} → {folder}; now: spheregen sample {folder}")
