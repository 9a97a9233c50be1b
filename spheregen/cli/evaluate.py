"""`spheregen evaluate`: metrics of a trained model."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from spheregen.cli.console import console, find_run, say, warn
from spheregen.errors import RecipeError, SpheregenError
from spheregen.tables import FIGURES, plot_steps, way


def evaluate(
    run: Path | None = typer.Argument(None, help="A run folder; the newest under runs/ where none is named."),
    steps: str | None = typer.Option(None, help="Steps to sample with, as 1,2,4,6; the recipe's where not given."),
    cfg: str | None = typer.Option(None, help="Guidance scales, as 1,1.4."),
    cfg_position: str | None = typer.Option(None, help="Places of guidance, as latent,pixel,combo."),
    sampler: list[str] = typer.Option(
        [], metavar="NAME[:KEY=VALUE,…]", help="A sampler, as fixed:noise=independent; repeat for more."
    ),
    recalibration: str | None = typer.Option(
        None, help="Batch statistics to sample with, of trained,none,reference,generated."
    ),
    samples: int | None = typer.Option(None, min=2, help="Samples a row."),
    metrics: str | None = typer.Option(None, help="What to measure, of fid,is,kid,prc,coverage,rfid."),
    set_: list[str] = typer.Option(
        [], "--set", metavar="SECTION.KEY=VALUE", help="Change the run's [features], [evaluation] or [data]."
    ),
    reference_folder: Path | None = typer.Option(None, help="Compare with the images in this folder instead."),
    seed: int = typer.Option(0, help="Same seed, same samples."),
    batch_size: int = typer.Option(250, min=1, help="Images at a time; changes speed and memory, not the figures."),
    device: str = typer.Option("auto", help="cpu, cuda, mps, …; auto takes what there is."),
    as_json: bool = typer.Option(False, "--json", help="Print the rows as JSON."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Measure a model's samples: FID and others, for every combination of steps, guidance and sampler.

    Rows that were measured before are read, not made again; an interrupted one goes on where it was.
    """
    from spheregen import checkpoint, hub
    from spheregen.cli.options import pick_device, pick_sampler
    from spheregen.evaluation import FOLDER
    from spheregen.evaluation import evaluate as measure
    from spheregen.reference import processes

    folder = find_run(run)
    if hub.is_address(folder):
        raise SpheregenError(f"{folder}: rows are kept in a run's folder; make one of it first with spheregen export "
                             "--format safetensors --out FOLDER")  # fmt: skip
    together = processes()
    main = together.is_main_process
    where = pick_device(device) if together.num_processes == 1 else str(together.device)
    model = checkpoint.load(folder, trust_plugins=trust_plugins)
    recipe = changed(folder, set_, model.recipe)
    chosen = [pick_sampler(model, *named_sampler(text)) for text in sampler]
    options = recipe.evaluation
    with Display(main and not as_json) as on_progress:
        rows = measure(
            folder,
            samples=samples or options.samples,
            steps=numbers("--steps", steps, int) or options.steps,
            guidance=numbers("--cfg", cfg, float) or options.guidance,
            positions=cfg_position.split(",") if cfg_position else options.positions,
            samplers=chosen,
            recalibrations=recalibration.split(",") if recalibration else options.recalibrations,
            metrics=metrics.split(",") if metrics else options.metrics,
            seed=seed,
            batch_size=batch_size,
            against=folder_source(reference_folder, recipe) if reference_folder else recipe.data.build(),
            features=recipe.features.build(),
            device=where,
            trust_plugins=trust_plugins,
            on_progress=on_progress,
        )
    if not main:
        return
    if as_json:
        console.print_json(json.dumps(rows))
        return
    console.print(table(rows))
    first = rows[0]
    say(
        f"[dim]{first['samples']:,} samples a row, seed {first['seed']}, weights {first['weights']['file']} "
        f"({first['weights']['average']}, {first['weights']['hash']}); against {first['reference_images']:,} images of "
        f"{escape(first['reference'])} ({first['reference_key']})[/]"
    )
    if first["extractor"] != "inception":
        say(f"[dim]features: {first['extractor']}; the Fréchet distance is FD({first['extractor']}), not an FID[/]")
    elif first["samples"] < 50_000:
        warn("FID falls with the number of samples: compare with figures of as many only, never with FIDs of 50,000")
    path = folder / FOLDER / "metrics.png"
    if plot_steps(rows, path):
        say(f"→ {escape(str(path))}")


def changed(folder: Path, settings: list[str], recipe: Any) -> Any:
    """The run's recipe with --set applied; only what evaluation reads may change."""
    from spheregen.checkpoint import RECIPE
    from spheregen.recipe import Recipe
    from spheregen.recipe_files import Origins, override

    if not settings:
        return recipe
    origins = Origins(folder / RECIPE)
    raw = tomllib.loads((folder / RECIPE).read_text(encoding="utf-8"))
    for setting in settings:
        if setting.partition(".")[0] not in ("features", "evaluation", "data"):
            raise RecipeError(f"--set {setting}: evaluate can change [features], [evaluation] and [data] only")
        override(raw, setting, origins)
    again = Recipe.parse(raw, origins)
    if again.image != recipe.image:
        raise RecipeError(f"--set: the model makes images {recipe.image}, [data] now has {again.image}")
    return again


def numbers(option: str, text: str | None, kind: Callable[[str], Any]) -> list[Any]:
    """1,2,4 -> [1, 2, 4]; nothing -> []."""
    try:
        return [kind(word) for word in text.split(",")] if text else []
    except ValueError:
        raise SpheregenError(f"{option} {text}: expected numbers, as 1,2,4") from None


def named_sampler(text: str) -> tuple[str, list[str]]:
    """fixed:noise=independent,r=0.5 -> ("fixed", ["noise=independent", "r=0.5"])."""
    name, _, settings = text.partition(":")
    return name, settings.split(",") if settings else []


def folder_source(folder: Path, recipe: Any) -> Any:
    """The images in a folder and below, all of the size that the model makes."""
    from PIL import Image

    from spheregen.errors import DataError
    from spheregen.registry import registry

    image = recipe.image
    component = registry.get("data", "image-folder")
    source = component(component.Options(root=str(folder), image_size=image.size, channels=image.channels, classes=0))
    for path in source.paths:
        with Image.open(path) as file:
            if file.size != (image.size, image.size):
                raise DataError(f"{path}: is {file.width}×{file.height}, the model makes {image.size}×{image.size}; "
                                "resize the folder's images first")  # fmt: skip
    return source


def table(rows: list[dict[str, Any]]) -> Table:
    """A line a row, a column a figure, under the names that they may bear; the extractor's stands below."""
    shown = [name for name in FIGURES if any(name in row for row in rows)]
    titles = {name: title for row in reversed(rows) for name, title in row["titles"].items()}
    columns = [titles.get(name, name).partition("(")[0].replace("_", " ") for name in shown]
    made = Table("steps", "passes", "sampled by", *columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        figures = [f"{row[name]:.{FIGURES[name]}f}" if name in row else "" for name in shown]
        made.add_row(str(row["steps"] or ""), str(row["network_passes"]), way(row), *figures)
    return made


class Display:
    """A live bar for each extraction under way."""

    def __init__(self, shown: bool) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
            disable=not shown or not console.is_terminal, transient=True,
        )  # fmt: skip
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.progress.start()
        return self.update

    def update(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total)
        self.progress.update(self.tasks[what], completed=done)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
