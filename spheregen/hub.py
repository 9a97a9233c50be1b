"""Models on the Hugging Face Hub: fetched by `spheregen.load("hf://owner/name")`, published by `push`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from spheregen.checkpoint import MODEL, RECIPE
from spheregen.errors import RunError, SpheregenError
from spheregen.pretrained.weights import one_line

FILES = [RECIPE, MODEL, "plugins/*.py"]  # all that `load` reads
# One slash where the address went through pathlib.Path.
_ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?")


def fetch(address: str) -> Path:
    """The local folder of the model at hf://owner/name[@revision], downloaded where it is not in the cache yet.

    Raises RunError where the address is wrong, or the model cannot be had.
    """
    match = _parsed(address)
    with _told(address):
        folder = Path(
            huggingface_hub.snapshot_download(match["repo"], revision=match["revision"], allow_patterns=FILES)
        )
    if missing := [name for name in (RECIPE, MODEL) if not (folder / name).is_file()]:
        raise RunError(f"{address}: not a model of spheregen: the repository has no {' and no '.join(missing)}")
    return folder


def _parsed(address: str) -> re.Match[str]:
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise RunError(f"{address}: expected hf://owner/name or hf://owner/name@revision")
    return match


def local(run: str | Path) -> Path:
    """The folder that `run` names: itself, or where the hub's model was fetched to."""
    return fetch(str(run)) if is_address(run) else Path(run)


def is_address(run: str | Path) -> bool:
    """Whether this is a model on the hub rather than a folder."""
    return str(run).startswith("hf:/")


def tag(address: str | Path) -> str:
    """The model's name as a folder's: hf://owner/name@v2/x -> owner--name@v2-x."""
    match = _parsed(str(address))
    revision = f"@{match['revision']}" if match["revision"] else ""
    return match["repo"].replace("/", "--") + revision.replace("/", "-")


def push(
    run: str | Path,
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    trust_plugins: bool = False,
) -> str:
    """Publish a run's model as the repository owner/name, which is made where there is none. Returns its address.

    What goes there is what `export_folder` writes: recipe, weights, single-file plugins, a model card and a picture.
    license: an identifier for the card, as apache-2.0. private: only where the repository is made. revision: a branch
    to write to. Raises SpheregenError where the run cannot be loaded, or the hub refuses.
    """
    from spheregen.export import export_folder

    address = f"hf://{repo}"
    if not (match := _ADDRESS.fullmatch(address)) or match["revision"]:
        raise SpheregenError(f"{repo}: expected owner/name")
    with tempfile.TemporaryDirectory() as scratch:
        folder = export_folder(
            run, Path(scratch) / "model", license=license, address=address, trust_plugins=trust_plugins
        )
        with _told(address):
            huggingface_hub.create_repo(repo, private=private, exist_ok=True)
            if revision:
                huggingface_hub.create_branch(repo, branch=revision, exist_ok=True)
            huggingface_hub.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                commit_message=message or "Model trained with spheregen",
            )
    return f"{address}@{revision}" if revision else address


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line."""
    try:
        yield
    except Exception as error:  # the hub's own errors, its HTTP library's, and the disk's
        raise RunError(f"{address}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    login = "log in with `hf auth login`, or set HF_TOKEN"
    match error:
        case GatedRepoError():
            return f"access has to be asked for on its page on huggingface.co; then {login}"
        case RepositoryNotFoundError():
            return f"no such repository, or it is private: {login}"
        case RevisionNotFoundError():
            return "the repository has no such revision"
        case LocalTokenNotFoundError():
            return f"needs an account: {login}"
        case HFValidationError():
            return f"not a repository's name: {one_line(error)}"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, which forbids every request"
        case LocalEntryNotFoundError():
            offline = huggingface_hub.constants.HF_HUB_OFFLINE
            why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
            return f"not in the cache on this disk, and {why}"
        case EntryNotFoundError():
            return f"a file is missing there: {one_line(error)}"
    return one_line(error)
