"""Weights files: where they are, how they are fetched, and that they fit.

Nothing is tried for long: where a file is not at hand, one short request tells whether it can be had, and the error
says what to place where. HF_HUB_OFFLINE=1 forbids every request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NoReturn
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import huggingface_hub
import torch
from torch import Tensor, nn

from spheregen.errors import WeightsError, misfits

HUB_NAMES = ("model.safetensors", "pytorch_model.bin")
PATIENCE = 10.0  # seconds


def torch_file(url: str) -> Path:
    """A file that torch.hub would fetch from a URL: from its cache, or downloaded into it and checked against the hash
    in its name. Raises WeightsError where it cannot be had."""
    path = _checkpoints() / PurePosixPath(urlparse(url).path).name
    if path.is_file():
        return path
    reason = unreachable(url)
    if reason is None:
        digest = re.search(r"-([a-f0-9]{8,})\.", path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None)
            return path
        except (OSError, RuntimeError, HTTPException) as error:
            reason = one_line(error)
    _missing(path, url, reason)


def hub_file(repo: str, names: Sequence[str] = HUB_NAMES) -> Path:
    """The weights file of a Hugging Face repository, under the first of some names that it has: from torch.hub's folder
    as <model>.safetensors, where a person may place it, from Hugging Face's cache, or downloaded into that.

    Raises WeightsError where it cannot be had.
    """
    placed = _checkpoints() / f"{repo.rpartition('/')[2]}{Path(names[0]).suffix}"
    if placed.is_file():
        return placed
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
    url = huggingface_hub.hf_hub_url(repo, names[0])
    reason = unreachable(url)
    if reason is None:
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(repo, name))
            except Exception as error:  # the hub's own errors, its HTTP library's, and the disk's
                reason = reason or one_line(error)
    _missing(placed, url, reason or "")


def unreachable(url: str) -> str | None:
    """Why a URL cannot be reached, told within seconds; None where a server answers."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        with urlopen(Request(url, method="HEAD"), timeout=PATIENCE):
            return None
    except HTTPError:
        return None  # an answer; if it means no, the download will tell
    except (OSError, HTTPException) as error:
        return one_line(getattr(error, "reason", error))


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, on the CPU; pickled code is never run.

    Raises WeightsError where the file is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    from timm.models import load_state_dict  # slow to import

    try:
        tensors = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # readers raise whatever the bytes of a broken file provoke
        raise WeightsError(f"{path}: damaged or not a weights file ({one_line(error)[:120]})") from None
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise WeightsError(f"{path}: holds something other than named tensors")
    return tensors


def load(module: nn.Module, tensors: dict[str, Tensor], source: Path, model: str) -> None:
    """Put tensors into a module. Raises WeightsError where not all fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        refuse(tensors, module, source, model, error)


def refuse(tensors: dict[str, Tensor], module: nn.Module, source: Path, model: str, error: Exception) -> NoReturn:
    """Raise WeightsError that says in one line which of the tensors of a file do not fit a module."""
    what = misfits(module.state_dict(), tensors) or one_line(error)
    raise WeightsError(f"{source}: does not fit {model}: {what}") from None


def one_line(error: object) -> str:
    """An exception's message as one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _missing(path: Path, url: str, reason: str) -> NoReturn:
    raise WeightsError(f'{path}: missing, and not to be downloaded ({reason}); place {url} there, or name a '
                                 'file with weights = "…"')  # fmt: skip
