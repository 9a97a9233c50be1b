"""`spheregen plugins`: every component there is, and where it comes from."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from spheregen.cli.console import console, say, warn
from spheregen.component import Component
from spheregen.errors import PluginError, suggest
from spheregen.registry import registry

app = typer.Typer(help="The components that recipes can name, and the plugins they come from.", no_args_is_help=True)


@app.command("list")
def list_(
    kind: str | None = typer.Argument(None, help="Only this kind: encoder, sampler, data, …"),
    as_json: bool = typer.Option(False, "--json", help="As JSON, with the hooks of each plugin."),
) -> None:
    """List the components, and any plugin that could not be loaded."""
    found = registry.components()
    kinds = sorted({component.kind for component in found})
    if kind is not None and kind not in kinds:
        raise PluginError(f"unknown kind '{kind}': {suggest(kind, kinds)}")
    found = [component for component in found if kind in (None, component.kind)]
    if as_json:
        report = {
            "components": [{"kind": c.kind, "name": c.name, "plugin": registry.origin(c)} for c in found],
            "plugins": [
                {"name": name, "file": getattr(module, "__file__", None), "hooks": registry.hooks_of(module)}
                for name, module in registry.plugins().items()
            ],
            "failures": registry.failures,
        }
        console.print_json(json.dumps(report))
        return
    table = Table("kind", "name", "plugin", "what it is", box=None, header_style="bold", pad_edge=False)
    for component in found:
        table.add_row(component.kind, str(component.name), registry.origin(component), escape(summary(component)))
    console.print(table)
    for reason in registry.failures.values():
        warn(reason)


@app.command("show")
def show(
    name: str = typer.Argument(help="A component's name, or kind/name where several kinds share it."),
) -> None:
    """Show a component's options: type, default and meaning."""
    kind, _, short = name.rpartition("/")
    found = [c for c in registry.components() if c.name == short and kind in ("", c.kind)]
    if not found:
        raise PluginError(f"unknown component '{name}': {suggest(short, {str(c.name) for c in registry.components()})}")
    for component in found:
        origin = registry.origin(component)
        say(f"[bold]{component.kind}/{component.name}[/]  [dim]{origin}: {component.__qualname__}[/]")
        say(f"  {escape(summary(component))}")
        table = Table("option", "type", "default", "what it does", box=None, header_style="bold")
        properties: dict[str, Any] = component.Options.model_json_schema().get("properties", {})
        for key, schema in properties.items():
            required = component.Options.model_fields[key].is_required()
            default = "required" if required else json.dumps(schema.get("default"))
            table.add_row(
                key, escape(type_of(schema)), escape(default), escape(" ".join(schema.get("description", "").split()))
            )
        if properties:
            console.print(table)
        console.print()


def summary(component: type[Component]) -> str:
    """The first sentence of a component's docstring."""
    text = " ".join((component.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".")


def type_of(schema: dict[str, Any]) -> str:
    """A field's type as a person writes it."""
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join("unset" if part.get("type") == "null" else type_of(part) for part in schema["anyOf"])
    return str(schema.get("const", schema.get("type", "any")))
