"""Image files in folders, one folder a class."""

from __future__ import annotations

import hashlib
import logging
import os
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

import spheregen
from spheregen_data.sources import whole_file

logger = logging.getLogger(__name__)


class ImageFolder(spheregen.ImageSource, name="image-folder"):
    """Image files in class folders, scaled and cropped as ADM does.

    Any file counts that PIL can read, by its ending, in a class folder or anywhere below it; files and folders whose
    names begin with a dot do not. Labels follow the class folders' names in sorted order. Where root has a folder
    train, that and test (or val) are its splits; otherwise root itself is train, and there is no test.

    Under on_error = "skip" an unreadable file gives way to the next readable one of its class. `unreadable` tells
    which files were met so far: the marks lie in memory that DataLoader workers share, so none is lost or counted
    twice (processes of one distributed run each have their own). Each is logged as a warning when it is first met.
    """

    class Options(spheregen.Options):
        root: str
        """The folder of the class folders, or of train and test (or val)."""
        image_size: int = Field(gt=0)
        """Height and width: the shorter side is scaled to it, then the centre is cut out."""
        channels: Literal[1, 3] = 3
        """1 converts to grey, 3 to RGB."""
        classes: int = Field(ge=0)
        """How many class folders there are; 0 for images without labels, anywhere below root."""
        split: Literal["train", "test"] = "train"
        """Which part of the set."""
        on_error: Literal["refuse", "skip"] = "refuse"
        """At an unreadable file: refuse stops; skip takes the next readable one of its class."""
        draft: bool = False
        """Let the JPEG decoder halve large photos: several times faster, pixels not quite ADM's."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.folder = split_folder(Path(options.root).expanduser(), options.split)
        self.names = class_folders(self.folder, options.classes)
        self.paths: list[str] = []
        self.starts = [0]  # where each class begins in `paths`, and where the last one ends
        for name in self.names or [""]:
            found = image_files(self.folder / name)
            if not found:
                raise spheregen.DataError(f"{self.folder / name}: no images in it")
            self.paths += found
            self.starts.append(len(self.paths))
        self.labels = torch.arange(len(self.starts) - 1).repeat_interleave(torch.tensor(self.starts).diff())
        self.marks = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()

    @classmethod
    def describe(cls, options: Options) -> spheregen.ImageSpec:
        return spheregen.ImageSpec(options.image_size, options.channels, options.classes)

    @property
    def class_names(self) -> list[str]:
        return self.names

    @property
    def unreadable(self) -> list[str]:
        """The files met so far that could not be read, by any worker."""
        return [self.paths[i] for i in self.marks.nonzero().flatten().tolist()]

    @property
    def skipped(self) -> int:
        """How many those are."""
        return int(self.marks.sum())

    def fingerprint(self) -> str:
        """Of the files' names, sizes and times of change, and the options: no file is read."""
        digest = hashlib.sha256(self.options.model_dump_json().encode())
        for path in self.paths:
            status = os.stat(path)
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def original(self, index: int) -> tuple[str, bytes]:
        return whole_file(Path(self.paths[index]))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.labels[index])
        if self.options.on_error == "refuse":
            return self._read(index), label
        begin, end = self.starts[label], self.starts[label + 1]
        for candidate in chain(range(index, end), range(begin, index)):
            if self.marks[candidate]:
                continue
            try:
                return self._read(candidate), label
            except spheregen.DataError as error:
                self.marks[candidate] = True
                logger.warning("%s (skipped; %d so far)", error, self.skipped)
        raise spheregen.DataError(f"{self.folder / self.names[label] if self.names else self.folder}: "
                                  f"none of its {end - begin} images can be read")  # fmt: skip

    def _read(self, index: int) -> Tensor:
        options = self.options
        return spheregen.read_image(self.paths[index], options.image_size, options.channels, draft=options.draft)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split. Raises DataError where there is none."""
    if not root.is_dir():
        raise spheregen.DataError(f"{root}: no such folder (data.root)")
    if not (root / "train").is_dir():
        if split == "train":
            return root
        raise spheregen.DataError(f"{root}: has no test split; it would need the folders train and test (or val)")
    names = ["train"] if split == "train" else ["test", "val"]
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise spheregen.DataError(f"{root}: has a folder train, but neither test nor val")


def class_folders(folder: Path, expected: int) -> list[str]:
    """The names of the class folders, sorted; none where no classes are expected. Raises DataError where there are
    more or fewer."""
    if not expected:
        return []
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) != expected:
        shown = f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
        raise spheregen.DataError(f"{folder}: expected {expected} class folders (data.classes), "
                                  f"found {len(names)}{shown}")  # fmt: skip
    return names


def image_files(folder: Path) -> list[str]:
    """The image files in a folder and below, links followed, sorted by path."""
    Image.init()
    endings = tuple(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(parent, name) for name in files if not name.startswith(".") and name.lower().endswith(endings)
        ]
    return sorted(found)
