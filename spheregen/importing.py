"""Weights made with the paper's authors' training code, as a run folder of ours.

Such a checkpoint is a dict that torch.save wrote: `model` (a state dict whose names begin with encoder. or decoder.),
`epoch` and, where kept, `ema_model`. The networks themselves know their tensors' names there
(`Network.authors_names`); here is all the rest: reading without running anything, and refusing what does not fit.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spheregen.checkpoint import RunFolder, new_folder
from spheregen.errors import DataError, RunError, suggest
from spheregen.model import SphereModel
from spheregen.recipe import Recipe

PARTS = ("encoder", "decoder")
# Parts of extensions of the model, which a recipe cannot describe.
EXTENSIONS = ("encoder_cond_proj", "decoder_cond_proj")
# Fixed tables agree to this: what half precision leaves of numbers up to 1. Another convention differs by far more.
TABLE_TOLERANCE = 4e-3


@dataclass(frozen=True)
class Imported:
    """What an import made. named: whether the class names could be had from the recipe's data."""

    run: RunFolder
    model: SphereModel
    epoch: int | None
    named: bool


def import_checkpoint(path: str | Path, recipe: Recipe, run: str | Path, weights: str = "model") -> Imported:
    """Write the run folder `run` from a checkpoint of the authors' code and the recipe that it was trained by.

    weights: which state dict of the checkpoint, `model` or `ema_model`. Class names come from the recipe's data where
    that is at hand. Raises RunError for a file that cannot be read, for tensors that do not fit, all of them listed,
    and for a folder that is not empty; nothing is written then.
    """
    with new_folder(run) as aside:
        tensors, epoch = read(Path(path), weights)
        names = _class_names(recipe)
        model = SphereModel.from_recipe(recipe, names)
        try:
            state = fit(model, tensors)
        except ValueError as error:
            raise RunError(
                f"{path}: '{weights}' does not fit the recipe {recipe.name}; nothing is written\n{error}"
            ) from None
        model.load_state_dict(state)
        folder = RunFolder(aside)
        folder.begin(recipe)
        about = {
            "weights": "ema" if weights == "ema_model" else "raw",
            "class_names": json.dumps(model.class_names),
            "imported": Path(path).name,
        }
        if epoch is not None:
            about["epochs"] = str(epoch)
        folder.save_model(model, about)
    return Imported(RunFolder(run), model.eval(), epoch, bool(names) or not recipe.shape.num_classes)


def read(path: Path, weights: str) -> tuple[dict[str, Tensor], int | None]:
    """The tensors of one state dict of a checkpoint, and the epoch it was made at. No pickled code is run.

    Raises RunError where there is no such file, or it holds anything else.
    """
    try:
        # Mapped, so that the optimizer's state, twice the size of the weights, is never read.
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # unpicklers raise whatever the bytes of a broken file provoke
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            what = f"holds pickled code ({code[1]}), which is never run; expected tensors and plain values"
        else:
            what = "damaged, or not a checkpoint that torch.save wrote"
        raise RunError(f"{path}: {what}") from None
    if not isinstance(content, dict) or weights not in content:
        held = [str(key) for key in content] if isinstance(content, dict) else []
        raise RunError(f"{path}: holds no '{weights}'; {suggest(weights, held)}")
    tensors = content[weights]
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise RunError(f"{path}: '{weights}': expected a state dict, tensors by name")
    epoch = content.get("epoch")
    return tensors, epoch if isinstance(epoch, int) else None


def fit(model: SphereModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names: a whole state dict of the model.

    Raises ValueError that lists, a line each, the names and shapes that do not fit; layers that are alike share one.
    """
    ours = model.state_dict()
    theirs: dict[str, str] = {}
    tables: dict[str, Tensor] = {}
    faults: list[tuple[str, str]] = []
    for part in PARTS:
        network = getattr(model, part)
        names = network.authors_names()
        if not names:
            faults.append((part, f"'{network.name}' is not a network of the authors' code; [{part}] use another one"))
        theirs |= {f"{part}.{our}": f"{part}.{their}" for our, their in names.items()}
        tables |= {f"{part}.{name}": table for name, table in network.authors_tables().items()}
    if faults:
        raise ValueError(_listed(faults))

    known = {*theirs.values(), *tables}
    for name in tensors:
        extension = next((part for part in EXTENSIONS if part in name.split(".")), None)
        if extension:
            faults.append((name, f"{extension} belongs to an extension of the model, which no recipe describes"))
        elif name not in known:
            faults.append((name, "unknown: the recipe's model has no such tensor"))
    for our, tensor in ours.items():
        if our not in theirs:
            faults.append((our, 'such checkpoints hold no tensor for it; choose [regularizer] use = "none"'))
        elif theirs[our] not in tensors:
            faults.append((theirs[our], f"missing, expected {list(tensor.shape)}"))
        elif tensors[theirs[our]].shape != tensor.shape:
            faults.append((theirs[our], f"is {list(tensors[theirs[our]].shape)}, expected {list(tensor.shape)}"))
    for name, table in tables.items():
        if name not in tensors:
            faults.append((name, f"missing, expected {list(table.shape)}"))
        elif tensors[name].shape != table.shape:
            faults.append((name, f"is {list(tensors[name].shape)}, expected {list(table.shape)}"))
        elif not (difference := float((tensors[name].float() - table).abs().max())) <= TABLE_TOLERANCE:
            faults.append(
                (name, f"differs from the fixed table by up to {difference:.2g}: not the convention of the paper")
            )
    if faults:
        raise ValueError(_listed(faults))
    return {our: tensors[their] for our, their in theirs.items()}


def _listed(faults: Sequence[tuple[str, str]]) -> str:
    """`name: what is wrong with it`, a line each; names that differ only in their layer's number share one."""
    layers: dict[tuple[str, str, str], list[int]] = {}
    for name, what in faults:
        number = re.search(r"\bblocks\.(\d+)\b", name)
        before, after = (name[: number.start(1)], name[number.end(1) :]) if number else (name, "")
        layers.setdefault((before, after, what), []).extend([int(number[1])] if number else [])
    return "\n".join(f"{before}{_span(numbers)}{after}: {what}" for (before, after, what), numbers in layers.items())


def _span(numbers: Sequence[int]) -> str:
    """Layers in short: nothing, 3, {0-11} or {0,2,5}."""
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    first, last = min(numbers), max(numbers)
    whole = len(numbers) == last - first + 1
    return f"{{{first}-{last}}}" if whole else f"{{{','.join(map(str, sorted(numbers)))}}}"


def _class_names(recipe: Recipe) -> list[str]:
    """The names of the recipe's classes, where its data is at hand."""
    if not recipe.shape.num_classes:
        return []
    try:
        return list(recipe.data.build().class_names)
    except DataError:
        return []


__all__ = ["Imported", "import_checkpoint"]
