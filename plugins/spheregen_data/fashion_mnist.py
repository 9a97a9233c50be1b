"""Fashion-MNIST from its published idx files, as they come from Debian, the authors or torchvision."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

import spheregen
from spheregen_data.sources import TensorSource, locate

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


class FashionMNIST(TensorSource, name="fashion-mnist"):
    """Photos of clothes of 28×28 pixels, grey, 10 classes, 60,000 images and 10,000 for testing.

    Read from the four idx files, gzipped or not, and never written to.
    """

    class Options(spheregen.Options):
        split: Literal["train", "test"] = "train"
        """Which part of the set: 60,000 or 10,000 images."""
        root: str | None = None
        """The folder of the idx files; unset, fashion-mnist in $SPHEREGEN_DATA, ./data, ~/.cache/spheregen or
        /usr/share/datasets (Debian's package dataset-fashion-mnist)."""
        download: bool = False
        """Fetch missing files to root/fashion-mnist; without a root, in $SPHEREGEN_DATA or ./data."""
        image_size: Literal[28, 32] = 28
        """Height and width; 32 adds two black pixels on every side, so that more patch sizes fit."""

    def __init__(self, options: Options) -> None:
        prefix = "train" if options.split == "train" else "t10k"
        names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
        folder = locate(
            "fashion-mnist",
            "fashion-mnist",
            [f"{name}.gz|{name}" for name in names],
            options.root,
            _download if options.download else None,
            "apt-get install dataset-fashion-mnist or set download = true",
        )
        images, labels = (read_idx(_either(folder, name)) for name in names)
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max() > 9:
            raise spheregen.DataError(
                f"{folder}: expected {prefix} images of 28×28 and as many labels 0…9, found images "
                f"{list(images.shape)} and labels {list(labels.shape)} up to {labels.max()}"
            )
        padding = (options.image_size - 28) // 2
        padded = F.pad(torch.from_numpy(images), (padding,) * 4).unsqueeze(1)
        super().__init__(options, padded, torch.from_numpy(labels).long())

    @classmethod
    def describe(cls, options: Options) -> spheregen.ImageSpec:
        return spheregen.ImageSpec(options.image_size, 1, 10)

    @property
    def class_names(self) -> list[str]:
        return CLASSES


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes, gzipped where its name ends in .gz: a 4-byte magic number whose last byte is the number
    of dimensions, the dimensions as big-endian 32-bit integers, then the values.

    Raises DataError where the file is damaged, cut short or empty.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if len(data) < 4 or data[:3] != b"\x00\x00\x08":
            raise ValueError("it does not begin as an idx file of bytes does")
        shape = [int(size) for size in np.frombuffer(data, ">u4", count=data[3], offset=4)]
        expected, found = math.prod(shape), len(data) - 4 - 4 * len(shape)
        if expected != found or not expected:
            raise ValueError(f"its header promises {expected:,} values, it holds {found:,}")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise spheregen.DataError(f"{path}: not a whole idx file: {error}") from None
    # Copied, because torch takes no read-only memory.
    return np.frombuffer(data, np.uint8, offset=len(data) - expected).reshape(shape).copy()


def _either(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name


def _download(root: Path) -> None:
    from torchvision.datasets import FashionMNIST as Published
    from torchvision.datasets.utils import download_url

    for file, md5 in Published.resources:
        download_url(Published.mirrors[0] + file, root / "fashion-mnist", md5=md5)
