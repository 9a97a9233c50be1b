"""`spheregen recipes`: the recipes that ship."""

from __future__ import annotations

import tomllib

import typer
from rich.markup import escape
from rich.table import Table

from spheregen.cli.console import console
from spheregen.recipe_files import find_recipe, shipped_recipes

app = typer.Typer(help="The recipes that ship.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """List the shipped recipes."""
    table = Table("recipe", "what it trains", box=None, header_style="bold", pad_edge=False)
    for name, path in shipped_recipes().items():
        description = tomllib.loads(path.read_text(encoding="utf-8")).get("description", "")
        table.add_row(name, escape(description))
    console.print(table)


@app.command("show")
def show(
    name: str = typer.Argument(help="A shipped recipe's name, or a file."),
    resolved: bool = typer.Option(False, "--resolved", help="With everything it extends and every default."),
) -> None:
    """Print a recipe."""
    if not resolved:
        console.print(find_recipe(name).read_text(encoding="utf-8"), markup=False, soft_wrap=True, end="")
        return
    from spheregen.recipe import Recipe

    console.print(Recipe.read(name).to_toml(), markup=False, soft_wrap=True, end="")
