"""What the commands share: the console, refusals and notes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from spheregen.errors import RunError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print an error, unwrapped, and end the process."""
    for line in message.splitlines():
        errors.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)
    sys.exit(code)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    errors.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)


def say(message: str) -> None:
    """Print a line of rich markup, unwrapped, so that paths can be copied."""
    console.print(message, soft_wrap=True)


def out_folder(run: Path, runs: Path = Path("runs")) -> Path:
    """Where a command puts what it makes of a run, unless told: the run's own folder or, for a model of the hub, a
    folder beside the other runs, runs/owner--name[@revision]."""
    from spheregen import hub

    return runs / hub.tag(run) if hub.is_address(run) else run


def find_run(run: Path | None, runs: Path = Path("runs")) -> Path:
    """The run that was named or, where none was, the one under `runs` that was written to last."""
    if run is not None:
        return run

    def written(folder: Path) -> float:
        return max(file.stat().st_mtime for file in [folder, *folder.glob("*"), *folder.glob("checkpoints/*")])

    found = [file.parent for file in runs.glob("*/recipe.toml")]
    if not found:
        raise RunError(f"{runs}: holds no run; train one first (spheregen train digits) or name a run folder")
    newest = max(found, key=written)
    say(f"[dim]run {escape(str(newest))}, the newest under {escape(str(runs))}[/]")
    return newest
