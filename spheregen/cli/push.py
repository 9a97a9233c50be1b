"""`spheregen push`: a model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import console, say


def push(
    run: Path = typer.Argument(help="A run folder."),
    repo: str = typer.Argument(metavar="OWNER/NAME", help="The repository; made where there is none."),
    license: str | None = typer.Option(None, help="A license identifier for the model card: apache-2.0."),
    private: bool = typer.Option(False, "--private", help="Where the repository is made, make it private."),
    revision: str | None = typer.Option(None, help="A branch to write to; main where not given."),
    message: str | None = typer.Option(None, help="The commit's message."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Publish recipe, weights and a model card: what spheregen.load("hf://owner/name") reads."""
    from spheregen import hub

    with console.status("publishing"):
        address = hub.push(
            run, repo, license=license, private=private, revision=revision, message=message, trust_plugins=trust_plugins
        )
    say(f'published; now anywhere: spheregen.load("{escape(address)}")')
