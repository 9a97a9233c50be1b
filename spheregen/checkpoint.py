"""What a run folder holds. Everything is written aside and renamed; no pickle is ever read.

runs/digits/
  recipe.toml          as resolved
  model.safetensors    the finished weights; with recipe.toml all that `load` needs
  checkpoints/step-00001000/{model,ema,optimizer,guard}*.safetensors, state.json    see saving.py
  metrics.jsonl  samples/*.png
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spheregen.errors import RunError, misfits
from spheregen.model import SphereModel
from spheregen.recipe import Recipe
from spheregen.recipe_files import Origins
from spheregen.registry import registry

RECIPE, MODEL, CHECKPOINTS, METRICS, SAMPLES = (
    "recipe.toml", "model.safetensors", "checkpoints", "metrics.jsonl", "samples"
)  # fmt: skip
# Settings that may differ when a run is taken up again: they change what is recorded or where it is computed, not what
# is learnt; and the limits of skipped steps, without which a run that came to them could not go on.
FREE = {
    "training": {
        "log_images", "sample_images", "checkpoint_images", "keep", "workers", "activation_checkpointing", "strategy",
        "accumulate", "max_skipped", "spike_factor",
    },
    "sampling": None,
    "features": None,
    "evaluation": None,
}  # fmt: skip


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        _sync(aside)
        os.chmod(aside, 0o666 & ~_umask())  # mkstemp's 0600 would hide the file from everyone else
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well and vanishes otherwise.

    Raises RunError where `path` exists and is anything but an empty folder.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: exists already and is not an empty folder; name another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield aside
        os.chmod(aside, 0o777 & ~_umask())
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its header's notes. Raises RunError where it is missing or
    damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: not a readable safetensors file: {error}") from None


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Put tensors into a module. Raises RunError that lists what does not fit; the module is then untouched."""
    if faults := misfits(module.state_dict(), tensors):
        raise RunError(f"{source}: does not fit the recipe: {faults}")
    module.load_state_dict(tensors)


class RunFolder:
    """A run folder and the files in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / RECIPE
        self.model = self.path / MODEL
        self.metrics = self.path / METRICS
        self.samples = self.path / SAMPLES

    # -- the recipe ------------------------------------------------------------------------------------------------

    def begin(self, recipe: Recipe) -> None:
        """Make the folder for a recipe, or take up one that was made for the same.

        Raises RunError where the folder holds a run of another recipe.
        """
        now = recipe.as_dict()
        files = {name: f"plugins/{Path(name).name}" for name in recipe.plugins if name.endswith(".py")}
        now["plugins"] = [files.get(name, name) for name in recipe.plugins]
        if self.recipe.is_file():
            then = tomllib.loads(self.recipe.read_text(encoding="utf-8"))
            if changed := _differences(then, now):
                raise RunError(f"{self.path}: holds a run of another recipe ({'; '.join(changed[:3])}); "
                               "name another folder with --run")  # fmt: skip
        for original, copy in files.items():  # so that the folder can travel
            with replacing(self.path / copy) as aside:
                shutil.copyfile(original, aside)
        with replacing(self.recipe) as aside:
            aside.write_text(tomli_w.dumps(now), encoding="utf-8")

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        return sorted((self.path / CHECKPOINTS).glob("step-*"), reverse=True)

    def trim_metrics(self, step: int) -> None:
        """Drop the lines that an interrupted run logged after its last checkpoint: they are about to be made again."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # the line that a kill cut short
                continue
        if kept != lines:
            with replacing(self.metrics) as aside:
                aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    # -- the finished model ----------------------------------------------------------------------------------------

    def save_model(self, model: nn.Module | dict[str, Tensor], about: dict[str, str]) -> None:
        """Write model.safetensors from a module or its state; `about` goes into its header."""
        state = model.state_dict() if isinstance(model, nn.Module) else model
        with replacing(self.model) as aside:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
            save_file(tensors, aside, metadata=about)

    def weights(self) -> tuple[dict[str, Tensor], dict[str, str], Path]:
        """The finished weights or, of a run still under way, its newest good checkpoint's; notes; and their file, the
        first of several."""
        if self.model.is_file():
            return *read_tensors(self.model), self.model
        fault: RunError | None = None
        for checkpoint in self.checkpoints():
            from spheregen import saving  # distributed checkpoints take a while to import, and are seldom needed here

            final = tomllib.loads(self.recipe.read_text(encoding="utf-8"))["training"]["final_weights"]
            part = "ema" if final == "ema" else "model"
            try:
                state = saving.state_of(checkpoint)
                tensors = saving.read_part(checkpoint, part)
            except RunError as error:
                fault = error
                continue
            notes = {"images": str(state.get("images", "")), "weights": final,
                     "class_names": json.dumps(state.get("class_names", []))}  # fmt: skip
            return tensors, notes, saving.files_of(checkpoint, part)[0]
        raise fault or RunError(f"{self.path}: holds neither {MODEL} nor a checkpoint")


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings, but the free ones, in which two resolved recipes differ."""
    found = []
    for section in sorted({*then, *now} - {"name", "description"}):
        a, b = then.get(section), now.get(section)
        if not isinstance(a, dict) or not isinstance(b, dict):
            a, b, prefix = {section: a}, {section: b}, ""
        else:
            prefix = f"{section}."
        free = FREE.get(section, set())
        if free is None:
            continue
        found += [
            f"{prefix}{key} was {a.get(key)!r} and is {b.get(key)!r}"
            for key in sorted({*a, *b} - free)
            if a.get(key) != b.get(key)
        ]
    return found


def load(path: str | Path, *, device: torch.device | str = "cpu", trust_plugins: bool = False) -> SphereModel:
    """A trained model in eval mode, from its folder or from the Hugging Face Hub (hf://owner/name[@revision]).

    A folder may name plugins that are not in use yet; they are code, and are run only where `trust_plugins` says so.
    Raises RunError for what is missing, damaged or untrusted.
    """
    from spheregen import hub

    folder = RunFolder(hub.local(path))
    if not folder.recipe.is_file():
        raise RunError(f"{path}: not a run folder: it has no {RECIPE}")
    try:
        raw = tomllib.loads(folder.recipe.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{folder.recipe}: not valid TOML: {error}") from None
    unknown = [name for name in raw.get("plugins", []) if not registry.knows(name, folder.path)]
    if unknown and not trust_plugins:
        raise RunError(f"{path}: needs the plugins {', '.join(unknown)}, which are code; "
                       "look at them, then pass --trust-plugins (trust_plugins=True)")  # fmt: skip
    recipe = Recipe.parse(raw, Origins(folder.recipe))
    tensors, about, source = folder.weights()
    model = SphereModel.from_recipe(recipe, json.loads(about.get("class_names", "[]")))
    load_weights(model, tensors, source)
    return model.to(device).eval()
