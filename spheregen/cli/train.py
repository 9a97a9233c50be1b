"""`spheregen train`: train a recipe, or take up its training again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from spheregen.cli.console import console, say, warn
from spheregen.hookspecs import hookimpl

if TYPE_CHECKING:
    from spheregen.training import Trainer


def train(
    recipe: str = typer.Argument(help="A recipe's file, or the name of a shipped one (spheregen recipes list)."),
    run: Path | None = typer.Option(None, help="Folder of the run; runs/<name of the recipe> where not given."),
    set_: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the resolved recipe and train nothing."),
) -> None:
    """Train a recipe into a run folder. The same command again resumes; so does it after Ctrl-C or a crash."""
    from spheregen.recipe import Recipe
    from spheregen.training import Trainer

    resolved = Recipe.read(recipe, set_)
    if dry_run:
        console.print(resolved.to_toml(), markup=False, soft_wrap=True, end="")
        return
    trainer = Trainer(resolved, run or Path("runs") / resolved.name)
    finished = fit(trainer)
    if not trainer.is_main:
        return
    folder = escape(str(trainer.run.path))
    if finished:
        say(f"[green]done[/]: {folder}/model.safetensors; now: spheregen sample {folder}")
    else:
        say(f"[yellow]stopped[/] at {trainer.images_seen:,} images and saved; the same command goes on from there")
        raise typer.Exit(130)


def fit(trainer: Trainer) -> bool:
    """Train with a display. Returns whether training came to its end."""
    from spheregen.registry import registry

    display = Display()
    registry.register(display, "spheregen train")
    try:
        return trainer.fit()
    finally:
        display.close()
        registry.unregister(display)


class Display:
    """Training's progress, as a plugin like any other: a live bar on a terminal, a line an entry elsewhere."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.task = TaskID(0)

    @hookimpl
    def spheregen_train_start(self, trainer: Trainer) -> None:
        for note in trainer.notes:
            warn(note)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        device = trainer.accelerator.device
        processes = trainer.slices.processes
        say(
            f"[bold]{escape(trainer.recipe.name)}[/] → {escape(str(trainer.run.path))}  "
            f"[dim]{parameters / 1e6:.1f}M parameters, L = {trainer.model.shape.latent_dim}, "
            f"{len(trainer.source):,} images, {device}{f' × {processes}' if processes > 1 else ''}, "
            f"{str(trainer.dtype).removeprefix('torch.')}[/]"
        )
        if trainer.step:
            say(f"resumed at {trainer.images_seen:,} images")
        batch = trainer.recipe.training.batch_size
        if console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
                BarColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
                console=console,
            )
            total = trainer.total_steps * batch
            self.task = self.progress.add_task("train", total=total, completed=trainer.images_seen, shown="")
            self.progress.start()

    @hookimpl
    def spheregen_step_end(self, trainer: Trainer) -> None:
        if self.progress:
            self.progress.update(self.task, completed=trainer.images_seen)

    @hookimpl
    def spheregen_metrics(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        terms = {
            name: metrics[name] for name in metrics if name.startswith(("reconstruction", "consistency", "latent"))
        }
        losses = " ".join(f"{_short(name)} {value:.4f}" for name, value in terms.items())
        speed = f"{metrics['images_per_second']:.0f} images/s"
        skipped = "".join(
            f" [red]{metrics[f'skipped_{what}']:.0f} {what} skipped[/]"
            for what in ("steps", "images")
            if metrics[f"skipped_{what}"]
        )
        shown = f"loss {metrics['loss']:.4f} [dim]{losses}[/] {speed}{skipped}"
        if self.progress:
            self.progress.update(self.task, shown=shown)
        else:
            left = (trainer.total_steps - trainer.step) * trainer.recipe.training.batch_size
            say(f"{trainer.images_seen:>12,} images  {shown}  {left / metrics['images_per_second'] / 60:.1f} min left")

    @hookimpl
    def spheregen_samples_saved(self, trainer: Trainer, path: Any) -> None:
        self._print(f"[dim]samples → {escape(str(path))}[/]")

    def _print(self, message: str) -> None:
        (self.progress.console if self.progress else console).print(message, soft_wrap=True)

    def close(self) -> None:
        if self.progress:
            self.progress.stop()


def _short(name: str) -> str:
    """A loss term's name, short enough for a bar: reconstruction_l1 → recon-l1."""
    return (
        name.replace("reconstruction", "recon")
        .replace("consistency", "cons")
        .replace("perceptual", "perc")
        .replace("_", "-")
    )
