"""The hooks of a plugin. A plugin implements any of them as functions of its module, marked `@spheregen.hookimpl`.

docs/plugins.md has a section with an example for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import typer

    from spheregen.component import Component
    from spheregen.training import Trainer

hookspec = pluggy.HookspecMarker("spheregen")
hookimpl = pluggy.HookimplMarker("spheregen")


@hookspec
def spheregen_components() -> list[type[Component]]:  # type: ignore[empty-body]
    """The components that this plugin brings: classes derived from an interface and named."""


@hookspec
def spheregen_commands(app: typer.Typer) -> None:
    """Add commands to the command line: `@app.command()` as in any Typer program."""


@hookspec
def spheregen_train_start(trainer: Trainer) -> None:
    """Training is about to take its first step, or its first after a resumption."""


@hookspec
def spheregen_step_end(trainer: Trainer) -> None:
    """An optimizer step ended. Called at every step: be quick."""


@hookspec
def spheregen_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Metrics were logged (every `training.log_images` images): losses, lr, images_per_second, …"""


@hookspec
def spheregen_samples_saved(trainer: Trainer, path: Any) -> None:
    """A grid of samples was written to `path`."""


@hookspec
def spheregen_evaluation(run: Any, results: dict[str, Any]) -> None:
    """An evaluation of the run folder `run` ended with `results`."""


@hookspec
def spheregen_checkpoint_saved(trainer: Trainer, path: Any) -> None:
    """A checkpoint was written and renamed to `path`; it is complete. `trainer.step` may be past it."""


@hookspec
def spheregen_train_end(trainer: Trainer) -> None:
    """Training has seen all its images and model.safetensors is written."""
