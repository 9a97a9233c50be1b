"""`spheregen plan`: what training a recipe takes on other machines."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from spheregen.cli.console import console, say


def plan(
    recipe: str = typer.Argument(help="A recipe's file, or the name of a shipped one."),
    set_: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe."),
    device: str = typer.Option("h100", help="a100, a100-40gb, h100, h200, b200, l40s, mi300x or rtx4090."),
    count: int = typer.Option(1, min=1, help="So many of them."),
    utilisation: float = typer.Option(
        0.4, min=0.01, max=1, help="Share of the device's peak that training reaches; an assumption."
    ),
    precision: str = typer.Option("bf16", help="bf16 or fp32 (at the same peak)."),
    dataset: int | None = typer.Option(None, min=1, help="Images in the data set, where it is not here."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Parameters, FLOPs an image, memory by part, the largest batch that fits, and days. Allocates nothing."""
    from spheregen.planning import plan as make_plan
    from spheregen.recipe import Recipe

    resolved = Recipe.read(recipe, set_)
    with console.status("running a step on tensors without values"):
        found = make_plan(
            resolved, device=device, count=count, utilisation=utilisation, bf16=precision == "bf16", dataset=dataset
        )
    if as_json:
        console.print_json(json.dumps(found))
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """A plan as tables."""
    counts = found["parameters"]
    say(
        f"[bold]{escape(found['recipe'])}[/] on {found['count']} × {found['device']}, {found['precision']}: "
        f"{(counts['encoder'] + counts['decoder']) / 1e6:.1f}M parameters "
        f"(encoder {counts['encoder'] / 1e6:.1f}M, decoder {counts['decoder'] / 1e6:.1f}M; "
        f"perceptual networks {counts['perceptual'] / 1e6:.1f}M)"
    )
    say(f"{found['flops_per_image'] / 1e9:,.2f} GFLOP a training image, forward and backward")
    if found["days"] is None:
        say("days: the data is not here; tell its size with --dataset")
    else:
        say(
            f"{found['images']:,} images: {found['days']:,.2f} days at {found['utilisation']:.0%} of the peak "
            "[dim](an assumption; spheregen bench measures it)[/]"
        )
    table = Table("GiB a device", box=None, header_style="bold", pad_edge=False)
    for variant in found["variants"]:
        names = {(False, False): "plain", (True, False): "recomputed", (False, True): "sharded", (True, True): "both"}
        table.add_column(names[variant["checkpointing"], variant["sharded"]], justify="right")
    for part in found["variants"][0]["memory"]:
        table.add_row(part, *(f"{variant['memory'][part] / 2**30:.2f}" for variant in found["variants"]))
    table.add_row(
        "in all", *(f"{v['total'] / 2**30:.2f}{'' if v['fits'] else ' [red]✗[/]'}" for v in found["variants"])
    )
    table.add_row("images of the batch", *(str(found["batch_per_device"]) for _ in found["variants"]))
    table.add_row("most that fit", *(f"{v['largest_batch']:,}" for v in found["variants"]))
    console.print(table)
    say("[dim]recomputed: training.activation_checkpointing[/]")
    if found["count"] > 1:
        say("[dim]sharded: all but activations cut over the devices, as FSDP would; training does not shard yet[/]")
