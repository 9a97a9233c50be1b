"""`spheregen sweep`: a recipe trained and evaluated in variants."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from spheregen.cli.console import console, say
from spheregen.cli.evaluate import Display
from spheregen.cli.train import fit
from spheregen.errors import SpheregenError


def sweep(
    recipe: str = typer.Argument(help="A sweep's file (see recipes/ablations), or any recipe with --over."),
    over: list[str] = typer.Option(
        [], metavar="SECTION.KEY=VALUE,VALUE,…", help="A key and the values it takes; repeat for all combinations."
    ),
    set_: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Change a setting of all variants."),
    out: Path | None = typer.Option(None, help="Folder of the sweep; runs/sweeps/<name> where not given."),
    seed: int = typer.Option(0, help="Seed of the samples that are measured."),
    dry_run: bool = typer.Option(False, "--dry-run", help="List the variants and train nothing."),
) -> None:
    """Train and evaluate every variant, into one table and a plot.

    What is there already is not made again; the same command after Ctrl-C goes on where it was.
    """
    from spheregen.evaluation import evaluate
    from spheregen.sweep import PLOT, TABLE, Variant, read_sweep
    from spheregen.sweep import sweep as run_sweep
    from spheregen.training import Trainer

    name, variants = read_sweep(recipe, lists(over), set_)
    if dry_run:
        for variant in variants:
            say(f"{variant.name}  [dim]{escape(str(variant.values))}[/]")
        return
    folder = out or Path("runs") / "sweeps" / name

    def announce(number: int, variant: Variant) -> None:
        say(f"[bold]{number + 1} of {len(variants)}[/]: {escape(variant.name)}")

    def measure(run: Path) -> list[dict[str, Any]]:
        with Display(True) as on_progress:
            return evaluate(run, seed=seed, on_progress=on_progress)

    rows = run_sweep(
        name,
        variants,
        folder,
        train=lambda own, run: fit(Trainer(own, run)),
        evaluate=measure,
        on_variant=announce,
        made=made_by(recipe, over, set_),
    )
    if rows is None:
        say("[yellow]stopped[/] and saved; the same command goes on from there")
        raise typer.Exit(130)
    text = (folder / TABLE).read_text(encoding="utf-8").splitlines()
    header, _, *body = [line.strip("| ").split(" | ") for line in text if line.startswith("|")]
    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for cells in body:
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    say(f"→ {escape(str(folder / TABLE))}, {PLOT}")


def made_by(recipe: str, over: list[str], set_: list[str]) -> str:
    """How a table was made: the command, the machine and the date."""
    import torch

    from spheregen.benchmark import machine

    words = [
        "spheregen",
        "sweep",
        recipe,
        *(w for o in over for w in ("--over", o)),
        *(w for s in set_ for w in ("--set", s)),
    ]
    facts = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    where = f"{facts['device']}, {facts['cores']} cores, torch {facts['torch']}"
    return f"Made by `{shlex.join(words)}` on {where}, {facts['date']}."


def lists(over: list[str]) -> dict[str, list[Any]]:
    """noise.angle=45,60 -> {"noise.angle": [45, 60]}; values are TOML, or else text."""
    found: dict[str, list[Any]] = {}
    for text in over:
        key, equals, values = text.partition("=")
        if not equals or "." not in key or not values:
            raise SpheregenError(f"--over {text}: expected section.key=value,value,…")
        found[key.strip()] = [_value(word) for word in values.split(",")]
    return found


def _value(word: str) -> Any:
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word.strip()
