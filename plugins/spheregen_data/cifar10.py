"""CIFAR-10 from the binary version of its files: no pickle is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

import spheregen
from spheregen_data.sources import TensorSource, locate

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes, row by row


class Cifar10(TensorSource, name="cifar10"):
    """Photos of 32×32 pixels, RGB, 10 classes, 50,000 images and 10,000 for testing.

    Read from the binary version (cifar-10-binary.tar.gz), unpacked.
    """

    class Options(spheregen.Options):
        split: Literal["train", "test"] = "train"
        """Which part of the set: 50,000 or 10,000 images."""
        root: str | None = None
        """The folder cifar-10-batches-bin, or the one that holds it; unset, it is looked for in $SPHEREGEN_DATA,
        ./data, ~/.cache/spheregen and /usr/share/datasets."""
        download: bool = False
        """Fetch and unpack the files to root where they are missing; without a root, in $SPHEREGEN_DATA or ./data."""

    def __init__(self, options: Options) -> None:
        files = [f"data_batch_{i}.bin" for i in range(1, 6)] if options.split == "train" else ["test_batch.bin"]
        folder = locate(
            "cifar10", FOLDER, files, options.root, _download if options.download else None,
            f"set download = true, or unpack {URL} there",
        )  # fmt: skip
        records = torch.cat([read_batch(folder / file) for file in files])
        images = records[:, 1:].reshape(-1, 3, 32, 32).contiguous()
        super().__init__(options, images, records[:, 0].long())

    @classmethod
    def describe(cls, options: Options) -> spheregen.ImageSpec:
        return spheregen.ImageSpec(32, 3, 10)

    @property
    def class_names(self) -> list[str]:
        return CLASSES


def read_batch(path: Path) -> torch.Tensor:
    """The records of a batch file: uint8 [n, 3073]. Raises DataError where the file cannot be one."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise spheregen.DataError(f"{path}: {error.strerror or error}") from None
    if not data.size or data.size % RECORD:
        raise spheregen.DataError(f"{path}: cut short: {data.size:,} bytes are not whole records of {RECORD:,}")
    records = data.reshape(-1, RECORD)
    if (label := records[:, 0].max()) > 9:
        raise spheregen.DataError(f"{path}: not a CIFAR-10 batch: it has a label {label}")
    return torch.from_numpy(records)


def _download(root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(URL, root, md5=MD5)
