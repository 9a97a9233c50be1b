"""What the sources share: sets held in memory, where published files are looked for, and how they are fetched."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

import spheregen


class TensorSource(spheregen.ImageSource):
    """A source held in memory: `images`, contiguous uint8 [n, C, H, W], and `labels`, int64 [n]."""

    def __init__(self, options: Any, images: Tensor, labels: Tensor) -> None:
        super().__init__(options)
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def roots() -> list[Path]:
    """Where data sets are looked for, each in a subfolder of its own, when a recipe names no root."""
    named = os.environ.get("SPHEREGEN_DATA")
    return [
        *([Path(named)] if named else []),
        Path("data"),
        Path("~/.cache/spheregen").expanduser(),
        Path("/usr/share/datasets"),  # Debian's dataset-* packages
    ]


def locate(
    name: str,
    folder: str,
    files: list[str],
    root: str | None,
    fetch: Callable[[Path], object] | None = None,
    remedy: str = "set download = true",
) -> Path:
    """The folder that holds the files of the set `name`.

    folder: its usual name. Looked for as root and root/folder where a root is given, as folder in each of `roots()`
    otherwise. files: what must be in it; a name in several spellings is written "a|b". fetch: where downloading is
    allowed, what puts the files into root/folder, called with another root, from where they are moved. Of several
    processes one fetches, and the others wait for it.

    Raises DataError that names the missing file, where it was looked for and the remedy.
    """
    places = [Path(root).expanduser(), Path(root).expanduser() / folder] if root else [r / folder for r in roots()]
    if found := _first(places, files):
        return found
    if fetch is not None:
        target = Path(root).expanduser() if root else roots()[0]
        try:
            _fetch_once(target, folder, files, fetch)
        except (OSError, RuntimeError) as error:  # no network, no space, or a checksum that does not match
            raise spheregen.DataError(f"{name}: downloading to {target} failed: {one_line(error)}") from None
        if found := _first([target / folder], files):
            return found
    best = max(places, key=lambda place: sum(_exists(place, file) for file in files))
    missing = next(file for file in files if not _exists(best, file)).split("|")[0]
    raise spheregen.DataError(f"{name}: no {missing} in {' or '.join(map(str, places))}; {remedy}")


def _fetch_once(target: Path, folder: str, files: list[str], fetch: Callable[[Path], object]) -> None:
    """Fetch to target/folder unless another process has done so meanwhile; only whole files ever stand there."""
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / f".{folder}.lock"):
        if _first([target / folder], files):
            return
        with tempfile.TemporaryDirectory(prefix=f".{folder}.", dir=target) as aside:
            fetch(Path(aside))
            for entry in sorted((Path(aside) / folder).iterdir()):
                place = target / folder / entry.name
                place.parent.mkdir(exist_ok=True)
                if place.is_dir():
                    shutil.rmtree(place)
                os.replace(entry, place)


def _first(places: list[Path], files: list[str]) -> Path | None:
    return next((place for place in places if all(_exists(place, file) for file in files)), None)


def _exists(place: Path, file: str) -> bool:
    return any((place / spelling).exists() for spelling in file.split("|"))


def whole_file(path: Path) -> tuple[str, bytes]:
    """An image file's ending without its dot, and its bytes, for `ImageSource.original`."""
    try:
        return path.suffix.lower().removeprefix("."), path.read_bytes()
    except OSError as error:
        raise spheregen.DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def one_line(error: Exception) -> str:
    """An exception's message as one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
