"""The command line. One module a command; torch is imported only by the commands that need it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from spheregen.cli import (
    bench,
    compare,
    crossover,
    data,
    evaluate,
    export,
    import_,
    inspect,
    interpolate,
    plan,
    plugins,
    push,
    recipes,
    reconstruct,
    restyle,
    sample,
    studio,
    sweep,
    train,
    vary,
)
from spheregen.cli.console import fail, warn
from spheregen.errors import PluginError, SpheregenError
from spheregen.registry import ENVIRONMENT, registry

app = typer.Typer(
    name="spheregen",
    help="Image generation with a Sphere Encoder (arXiv 2602.15030).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("train")(train.train)
app.command("sample")(sample.sample)
app.command("compare")(compare.compare)
app.command("evaluate")(evaluate.evaluate)
app.command("sweep")(sweep.sweep)
app.command("bench")(bench.bench)
app.command("plan")(plan.plan)
app.command("reconstruct")(reconstruct.reconstruct)
app.command("interpolate")(interpolate.interpolate)
app.command("crossover")(crossover.crossover)
app.command("restyle")(restyle.restyle)
app.command("vary")(vary.vary)
app.command("studio")(studio.studio)
app.command("inspect")(inspect.inspect)
app.command("import")(import_.import_)
app.command("export")(export.export)
app.command("push")(push.push)
app.add_typer(data.app, name="data")
app.add_typer(plugins.app, name="plugins")
app.add_typer(recipes.app, name="recipes")


@app.callback()
def root(
    plugin: list[str] = typer.Option([], help="Use a plugin: a module or a .py file. May stand anywhere, and often."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error. May stand anywhere."),
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    # plugin and debug are declared here for the help alone: `main` takes them out before Typer sees the arguments,
    # because a plugin may bring commands.
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process."""
    arguments, named, debug = split_arguments(list(sys.argv[1:] if argv is None else argv))
    if arguments == ["--version"]:
        from spheregen import __version__

        print(__version__)
        sys.exit(0)
    try:
        for name in named:
            registry.load(name)
        for name in filter(None, os.environ.get(ENVIRONMENT, "").split(os.pathsep)):
            try:
                registry.load(name)
            except PluginError as error:  # commands that do not need it still work
                registry.failures[name] = str(error)
                warn(str(error))
        registry.manager.hook.spheregen_commands(app=app)
        app(arguments, obj=named)
    except SpheregenError as error:
        if debug:
            raise
        fail(str(error))
    except KeyboardInterrupt:
        if debug:
            raise
        fail("interrupted", code=130)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str], bool]:
    """Take --plugin NAME and --debug out of the arguments, wherever they stand before a `--`."""
    rest: list[str] = []
    plugins: list[str] = []
    debug = False
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--debug":
            debug = True
        elif word == "--plugin":
            name = next(words, None)
            if name is None:
                fail("--plugin: expected a module or a .py file", code=2)
            plugins.append(name)
        elif word.startswith("--plugin="):
            plugins.append(word.removeprefix("--plugin="))
        else:
            rest.append(word)
    return rest, plugins, debug
