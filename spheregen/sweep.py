"""Sweeps: a recipe trained and evaluated in variants, into one table. The ablations of the paper are sweeps in files.

A sweep file is a recipe with a further section:

    extends = "../digits.toml"
    [sweep]
    over = { "noise.angle" = [45, 60, 75, 80, 85, 88] }      # all combinations of the lists
    variants = { "no consistency" = ["objective.consistency_l1=0"] }   # or named sets of overrides, or both

An empty [sweep] trains once; its table is that of [evaluation], with as many samplers and guidances as stand there.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from spheregen.checkpoint import RunFolder, replacing
from spheregen.component import Options
from spheregen.errors import RecipeError
from spheregen.plots import lines
from spheregen.recipe import Recipe
from spheregen.recipe_files import Origins, override, read_raw
from spheregen.tables import FIGURES, counted, plot_steps, way

TABLE, ROWS, PLOT = "table.md", "table.json", "plot.png"


class SweepSection(Options):
    """What varies. Values of `over` are those of the key; overrides of `variants` are as for --set."""

    over: dict[str, list[Any]] = {}  # noqa: RUF012  # pydantic copies it
    """Keys of the recipe, section.key, and the values that each takes; all combinations are made."""
    variants: dict[str, list[str]] = {}  # noqa: RUF012
    """Sets of overrides by name."""


@dataclass(frozen=True)
class Variant:
    """One of a sweep's recipes. values: what tells it from the others, by column."""

    name: str
    values: dict[str, Any]
    recipe: Recipe


def read_sweep(
    path: str | Path, over: Mapping[str, Sequence[Any]] | None = None, overrides: Sequence[str] = ()
) -> tuple[str, list[Variant]]:
    """A sweep's name and variants: from a sweep file, or from any recipe and `over`, key -> values.

    Raises RecipeError, naming the variant, for one that is no recipe, and where nothing varies.
    """
    raw, origins = read_raw(path, overrides)
    if "sweep" not in raw and not over:
        raise RecipeError(f"{path}: nothing to sweep over; give --over section.key=value,value or a [sweep] section")
    try:
        section = SweepSection.model_validate(raw.pop("sweep", {}))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(origins.fault(("sweep", *first["loc"]), str(first["msg"]))) from None
    lists = {**section.over, **(over or {})}
    variants = []
    # Where nothing varies but the sampling, there is one variant, and its evaluation is the table.
    for label, settings in section.variants.items() or [("", [])]:
        for values in itertools.product(*lists.values()):
            named = dict(zip(lists, values, strict=True))
            columns = {**({"variant": label} if label else {}), **named}
            name = slug([label, *(f"{key.rpartition('.')[2]}-{value}" for key, value in named.items())])
            written = [*settings, *(f"{key}={json.dumps(value)}" for key, value in named.items())]
            name = name or "trained-once"
            variants.append(Variant(name, columns, _variant(raw, written, origins, name)))
    return str(raw["name"]), variants


def _variant(raw: Mapping[str, Any], settings: Sequence[str], origins: Origins, name: str) -> Recipe:
    own = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    own["name"] = f"{raw['name']}-{name}"
    for setting in settings:
        override(own, setting, origins)
    return Recipe.parse(own, origins)


def slug(words: Sequence[str]) -> str:
    """Words as the name of a folder."""
    return re.sub(r"[^a-zA-Z0-9.]+", "-", "-".join(word for word in words if word)).strip("-").lower()


def sweep(
    name: str,
    variants: Sequence[Variant],
    out: str | Path,
    *,
    train: Callable[[Recipe, Path], bool],
    evaluate: Callable[[Path], list[dict[str, Any]]],
    on_variant: Callable[[int, Variant], None] = lambda number, variant: None,
    made: str = "",
) -> list[dict[str, Any]] | None:
    """Train and evaluate the variants that are not there yet, each in a folder below `out`, and write one table.

    train: trains a recipe into a folder, and tells whether it came to its end; evaluate: the rows of a run. The table
    is written anew after each variant, so that an interrupted sweep shows what it has. made: how the table was made
    (command, machine, date), to stand below it. Returns all rows, or None where
    training was stopped; the same call goes on from there. Raises RunError where a folder holds a run of another
    recipe.
    """
    out = Path(out)
    rows: list[dict[str, Any]] = []
    for number, variant in enumerate(variants):
        on_variant(number, variant)
        run = RunFolder(out / variant.name)
        run.begin(variant.recipe)
        if not run.model.is_file() and not train(variant.recipe, run.path):
            return None
        rows += [{"values": variant.values, **row} for row in evaluate(run.path)]
        write_table(name, rows, out, made)
    return rows


def write_table(name: str, rows: Sequence[dict[str, Any]], out: Path, made: str = "") -> None:
    """table.md, table.json and plot.png of some rows."""
    with replacing(out / ROWS) as aside:
        aside.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    with replacing(out / TABLE) as aside:
        aside.write_text(markdown(name, rows, made), encoding="utf-8")
    if any(row["values"] for row in rows):
        plot(rows, out / PLOT)
    else:
        plot_steps(rows, out / PLOT)


def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """The keys of the varied values, and the figures that rows have, by name, with their titles."""
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    titles = {figure: title for row in rows for figure, title in row["titles"].items()}
    figures = [figure for figure in FIGURES if any(figure in row for row in rows)]
    return keys, {figure: titles.get(figure, figure) for figure in figures}


def markdown(name: str, rows: Sequence[dict[str, Any]], made: str = "") -> str:
    """The rows as a table in Markdown, and below it what they depend on and how they were made."""
    keys, titles = columns(rows)
    header = [*keys, "steps", "passes", "sampled by", *(title.replace("_", " ") for title in titles.values())]
    text = [f"# {name}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        own = [str(row["values"].get(key, "")) for key in keys]
        figures = [f"{row[figure]:.{FIGURES[figure]}f}" if figure in row else "" for figure in titles]
        cells = [*own, str(row["steps"] or ""), str(row["network_passes"]), way(row), *figures]
        text.append(f"| {' | '.join(cells)} |")
    first = rows[0]
    text += [
        "",
        f"{first['samples']:,} samples a row, seed {first['seed']}, {first['weights']['average']} weights after "
        f"{int(first['weights']['images'] or 0):,} images; against {first['reference_images']:,} images of "
        f"{first['reference']} ({first['reference_key']}); features {first['extractor']} ({first['extractor_key']}).",
        *(["", made] if made else []),
    ]
    return "\n".join(text) + "\n"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Each figure against the varied value, a line a way and number of steps."""
    keys, titles = columns(rows)
    points = [tuple(row["values"].get(key) for key in keys) for row in rows]
    places = list(dict.fromkeys(points))
    numeric = len(keys) == 1 and all(isinstance(place[0], int | float) for place in places)
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row, point in zip(rows, points, strict=True):
        x = float(point[0]) if numeric else float(places.index(point))
        label = f"{way(row)}, {counted(row['steps'], 'step')}" if row["steps"] else way(row)
        for figure, title in titles.items():
            if figure in row:
                panels.setdefault(title, {}).setdefault(label, []).append((x, row[figure]))
    ticks = None if numeric else [" ".join(str(value) for value in place) for place in places]
    lines(panels, " ".join(keys), path, ticks)
