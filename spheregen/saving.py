"""Checkpoints that every process writes its share of, in the background, and that any number of processes reads.

torch's distributed checkpoints (DCP) decide who writes what and who reads what, with safetensors as the storage: each
file's header says where its tensors belong in the whole ones. DCP's own storage is not used: its `.metadata` is a
pickle. A name is `{part}.{name in the part}`, and each part has files of its own:

  {part}.safetensors                  of a training on one process
  {part}-{i}-of-{n}.safetensors       otherwise; a process that has nothing of a part writes no file
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from spheregen.errors import RunError, misfits
from spheregen.stopping import own_group

# That there is one process is no news.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

STATE = "state.json"
Parts = Mapping[str, Mapping[str, Tensor]]


@dataclass
class _Saving:
    """A checkpoint that is being written."""

    written: Future[Any]
    aside: Path
    final: Path
    state: dict[str, Any]
    parts: list[str]


class CheckpointWriter:
    """Writes checkpoints of one run while it goes on, at most one at a time.

    Everything is copied to the host at once and written by a thread. The files are written aside, and the folder gets
    its name when all processes have written theirs.
    """

    def __init__(self, folder: Path, device: torch.device, processes: int, is_main: bool) -> None:
        self.folder, self.processes, self.is_main = folder, processes, is_main
        self.group = own_group(processes)
        on_gpu = device.type == "cuda"
        self.stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))
        self.saving: _Saving | None = None

    def clear(self) -> None:
        """Remove what a run that was killed had not finished writing."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def begin(self, step: int, parts: Parts, state: Mapping[str, Any]) -> None:
        """Copy all tensors to the host and begin to write them. Every process calls it, after `wait`."""
        assert self.saving is None, "one checkpoint at a time"
        final = self.folder / f"step-{step:08d}"
        aside = self.folder / f".{final.name}"
        names = list(parts)
        tensors = {f"{part}.{name}": tensor for part in names for name, tensor in parts[part].items()}
        files = {name: 1 + names.index(name.split(".", 1)[0]) for name in tensors}
        aside.mkdir(parents=True, exist_ok=True)
        writer = HuggingFaceStorageWriter(str(aside), fqn_to_index_mapping=files, save_distributed=True)
        written = dcp.async_save(tensors, storage_writer=writer, async_stager=self.stager, process_group=self.group)
        assert isinstance(written, Future)
        self.saving = _Saving(written, aside, final, {"step": step, **state}, names)

    def poll(self, keep: int) -> Path | None:
        """On the main process: the checkpoint, if it is complete by now; it has its name then, and those beyond the
        `keep` newest are removed. Raises RunError where it could not be written."""
        if not self.is_main or self.saving is None or not self.saving.written.done():
            return None
        return self.wait(keep)

    def wait(self, keep: int) -> Path | None:
        """Wait until what is being written is complete. Returns what `poll` would."""
        saving, self.saving = self.saving, None
        if saving is None:
            return None
        try:
            saving.written.result()
            if not self.is_main:
                return None
            self._finish(saving)
        except Exception as error:
            if self.is_main:
                shutil.rmtree(saving.aside, ignore_errors=True)
            causes = [cause for cause, _ in getattr(error, "failures", {}).values()] or [error]
            raise RunError(f"{saving.final}: could not be written: {causes[0]}") from error
        for old in newest_first(self.folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)
        return saving.final

    def _finish(self, saving: _Saving) -> None:
        """Name files by their part, and then the folder."""
        for file in saving.aside.glob("shard-*.safetensors"):
            found = re.fullmatch(r"shard-(\d+)-model-(\d+)-of-\d+\.safetensors", file.name)
            assert found, file.name
            process, part = int(found[1]), saving.parts[int(found[2]) - 1]
            of = f"-{process}-of-{self.processes}" if self.processes > 1 else ""
            file.rename(file.with_name(f"{part}{of}.safetensors"))
        with open(saving.aside / STATE, "w", encoding="utf-8") as stream:
            json.dump(
                {**saving.state, "files": sorted(file.name for file in saving.aside.glob("*.safetensors"))}, stream
            )
            stream.flush()
            os.fsync(stream.fileno())
        if saving.final.exists():
            shutil.rmtree(saving.final)
        saving.aside.rename(saving.final)


def newest_first(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder."""
    return sorted(folder.glob("step-*"), reverse=True)


def files_of(path: Path, part: str) -> list[Path]:
    """The files of a part of a checkpoint."""
    return sorted(
        file for file in path.glob(f"{part}*.safetensors") if re.fullmatch(rf"{part}(-\d+-of-\d+)?", file.stem)
    )


def state_of(path: Path) -> dict[str, Any]:
    """state.json, which lists the files. Raises RunError where it, or one of them, cannot be read."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        for name in state["files"]:
            if not (path / str(name)).is_file():
                raise ValueError(f"{name} is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a readable checkpoint: {error}") from None
    return state


def contents_of(path: Path) -> dict[str, Tensor]:
    """What a checkpoint holds, as tensors without values, by full name. Only headers are read.

    Raises RunError where a file is damaged, or a tensor is not there as a whole (but for its end, which nothing tells).
    """
    try:
        found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        whole: dict[str, Tensor] = {}
        for name, entry in found.items():
            assert isinstance(entry, TensorStorageMetadata)
            there = sum(chunk.sizes.numel() for chunk in entry.chunks)
            if there != entry.size.numel():
                raise ValueError(f"parts of {name} are missing")
            whole[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise RunError(f"{path}: not a readable checkpoint: {error}") from None
    return whole


def check(path: Path, parts: Parts) -> dict[str, Any]:
    """Refuse a checkpoint that is damaged or does not fit tensors to be read into. Returns its state.json.

    Raises RunError.
    """
    state, found = state_of(path), contents_of(path)
    wanted = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    if faults := misfits(wanted, found):
        raise RunError(f"{path}: does not fit the recipe: {faults}")
    return state


def read_into(path: Path, parts: Parts) -> None:
    """Fill tensors, or this process's shards of them, from a checkpoint that `check` took. All processes call it."""
    tensors = {f"{part}.{name}": tensor for part, entries in parts.items() for name, tensor in entries.items()}
    with torch.no_grad():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))


def read_part(path: Path, part: str) -> dict[str, Tensor]:
    """A part of a checkpoint, whole and on the CPU. Raises RunError where it is missing or damaged."""
    contents = {name: t for name, t in contents_of(path).items() if name.startswith(f"{part}.")}
    if not contents:
        raise RunError(f"{path}: holds no {part}")
    tensors = {name: torch.empty_like(tensor, device="cpu") for name, tensor in contents.items()}
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    except Exception as error:
        raise RunError(f"{path}: not a readable checkpoint: {error}") from None
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items()}
