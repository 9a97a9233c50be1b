"""`spheregen export`: a model as ONNX, or as a folder that travels."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer
from rich.markup import escape

from spheregen.cli.console import console, find_run, say
from spheregen.errors import SpheregenError


class Format(StrEnum):
    """What a model is exported as."""

    onnx = "onnx"
    safetensors = "safetensors"


def export(
    run: Path | None = typer.Argument(
        None, help="A run folder, or hf://owner/name; the newest under runs/ where none is named."
    ),
    format: Format = typer.Option(
        Format.onnx,
        help="onnx: the one-step generator and the encoder, for programs without PyTorch. "
        "safetensors: a folder that spheregen.load reads anywhere.",
    ),
    out: Path | None = typer.Option(
        None, help="The folder to write, a new or an empty one; RUN/export/<format> where not given."
    ),
    cfg: float | None = typer.Option(None, help="onnx: guidance scale to build into the generator; none if not given."),
    cfg_position: str | None = typer.Option(
        None, help="onnx: where to guide, combo or pixel; the recipe's if not given."
    ),
    license: str | None = typer.Option(None, help="safetensors: a license identifier for the model card: apache-2.0."),
    trust_plugins: bool = typer.Option(False, "--trust-plugins", help="Run the plugins that the folder names."),
) -> None:
    """Write a trained model as a folder that other programs, or other machines, can use."""
    from spheregen import checkpoint, hub
    from spheregen import export as exporting

    folder = find_run(run)
    if format is Format.safetensors and (cfg is not None or cfg_position is not None):
        raise SpheregenError("--cfg: is built into ONNX files only; --format safetensors keeps the recipe's")
    if format is Format.onnx and license is not None:
        raise SpheregenError("--license: stands on the model card, which only --format safetensors writes")
    if out is None:
        if hub.is_address(folder):
            raise SpheregenError(f"{folder}: name the folder to write with --out")
        out = folder / "export" / format.value
    if format is Format.safetensors:
        written = exporting.export_folder(folder, out, license=license, trust_plugins=trust_plugins)
        say(f"recipe, weights and model card → {escape(str(written))}")
        return
    with console.status("exporting"):
        model = checkpoint.load(folder, trust_plugins=trust_plugins)
        done = exporting.export_onnx(model, out, guidance=cfg, position=cfg_position)
    told = ", ".join(f"{name} {difference:.1e}" for name, difference in done.differences.items())
    say(f"largest difference between onnxruntime and PyTorch: {told} → {escape(str(done.folder))}")
