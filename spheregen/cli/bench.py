"""`spheregen bench`: how fast a recipe is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from spheregen.cli.console import console, say
from spheregen.errors import SpheregenError


def bench(
    recipe: str = typer.Argument(help="A recipe's file, or the name of a shipped one."),
    set_: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe."),
    baseline: bool = typer.Option(False, "--baseline", help="Run the plain implementation of the paper beside it."),
    share: bool = typer.Option(
        False, "--share-decodings", help="Let the baseline decode once for all its losses, not once for each."
    ),
    rounds: int = typer.Option(5, min=1, help="Rounds, alternating with the baseline's; medians are told."),
    steps: int = typer.Option(3, min=1, help="Training steps a round."),
    sampling: str = typer.Option("1:1,4:1,4:1.4", help="What to sample: pairs of steps and guidance scale."),
    samples: int = typer.Option(64, min=1, help="Images a sampling round."),
    out: Path | None = typer.Option(None, help="Write everything as JSON to this file."),
) -> None:
    """Measure training and sampling: images a second, time by part, memory, and the share of the machine's peak.

    Leave the machine alone meanwhile. Where the recipe's images are not there, random ones stand in.
    """
    from spheregen.benchmark import benchmark
    from spheregen.checkpoint import replacing
    from spheregen.recipe import Recipe

    pairs = parse_pairs(sampling)
    resolved = Recipe.read(recipe, set_)
    with console.status("measuring") as status:
        report = benchmark(
            resolved, rounds=rounds, steps_a_round=steps, sampling=pairs, samples=samples, baseline=baseline,
            share=share, on_progress=status.update,
        )  # fmt: skip
    show(report)
    if out:
        with replacing(out) as aside:
            aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        say(f"→ {escape(str(out))}")


def parse_pairs(text: str) -> list[tuple[int, float]]:
    """1:1,4:1.4 -> [(1, 1.0), (4, 1.4)]."""
    pairs = []
    for word in text.split(","):
        steps, _, scale = word.partition(":")
        try:
            pairs.append((int(steps), float(scale or 1)))
        except ValueError:
            raise SpheregenError(f"--sampling {word}: expected STEPS:SCALE, as 4:1.4") from None
    return pairs


def show(report: dict[str, Any]) -> None:
    """The report as tables."""
    training = report["training"]
    say(
        f"[bold]{escape(report['recipe'])}[/]  [dim]{escape(report['device'])}, {report['threads']} threads, "
        f"{report['precision']}, torch {report['torch']}, {report['date']}; {report['images']} images, "
        f"batch {report['batch_size']}[/]"
    )
    ratio = _ratio(training)
    say(f"training: {training['images_per_second']:.1f} images/s{ratio}")
    peaks = dict(report["matmul_peak_flops"])
    own = peaks.pop(report["precision"])
    others = ", ".join(f"{peak / 1e9:.0f} in {name}" for name, peak in peaks.items())
    say(
        f"  {training['flops_per_image'] / 1e9:.2f} GFLOP an image, {training['share_of_peak']:.0%} of the "
        f"{own / 1e9:.0f} GFLOP/s that matrix products reach here in {report['precision']} ({others})"
    )
    compiled = ", compilation included" if report["compiled"] else ""
    say(
        f"  the first step took {training['seconds_of_first_step']:.2f} s{compiled}, later ones "
        f"{training['seconds_per_step']:.2f} s"
    )
    memory = f"  peak memory {_gibibytes(training['peak_memory'])}"
    if "baseline" in training:
        memory += f" (baseline {_gibibytes(training['baseline']['peak_memory'])})"
    say(memory)
    parts = Table("part", "ms a step", "share", box=None, header_style="bold")
    total = sum(training["seconds_by_part"].values())
    for part, seconds in training["seconds_by_part"].items():
        parts.add_row(part, f"{seconds * 1000:.1f}", f"{seconds / total:.0%}")
    console.print(parts)
    for row in report["sampling"]:
        say(
            f"sampling, {row['steps']} steps ({row['network_passes']} network passes), guidance {row['guidance']:g}, "
            f"{row['precision']}: {row['images_per_second']:.1f} images/s{_ratio(row)}"
        )


def _gibibytes(memory: int | None) -> str:
    return "more than there is" if memory is None else f"{memory / 2**30:.2f} GiB"


def _ratio(row: dict[str, Any]) -> str:
    """How much faster than the baseline: the median, and the range over rounds."""
    if "baseline" not in row:
        return ""
    ratios = row["baseline"]["ratios"]
    return (
        f", [bold]{row['baseline']['ratio']:.2f}×[/] the baseline ({min(ratios):.2f}–{max(ratios):.2f} over "
        f"{len(ratios)} rounds)"
    )
