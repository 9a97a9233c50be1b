"""Oxford-Flowers, from its published files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

import spheregen
from spheregen_data.sources import locate, whole_file

FOLDER = "flowers-102"
SPLITS = {"train": ["trnid"], "val": ["valid"], "test": ["tstid"], "all": ["trnid", "valid", "tstid"]}


class Flowers102(spheregen.ImageSource, name="flowers102"):
    """Photos of flowers, RGB, 102 classes, 8,189 images.

    The paper trains on 8K images: all three published parts together (1,020 + 1,020 + 6,149), which is the default.
    Nothing is then held out, since "test" is a part of "all"; split = "train" leaves the 6,149 images of "test".
    Images are scaled and cropped as ADM does.
    """

    class Options(spheregen.Options):
        split: Literal["train", "val", "test", "all"] = "all"
        """Which part of the set: 1,020, 1,020, 6,149 or all 8,189 images."""
        image_size: int = Field(256, gt=0)
        """Height and width: the shorter side is scaled to it, then the centre is cut out."""
        root: str | None = None
        """The folder flowers-102 (jpg/, imagelabels.mat, setid.mat), or the one that holds it; unset, it is looked for
        in $SPHEREGEN_DATA, ./data, ~/.cache/spheregen and /usr/share/datasets."""
        download: bool = False
        """Fetch and unpack the files to root where they are missing; without a root, in $SPHEREGEN_DATA or ./data."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.folder = locate(
            "flowers102", FOLDER, ["setid.mat", "imagelabels.mat", "jpg"], options.root,
            _download if options.download else None,
            "set download = true, or place the files of www.robots.ox.ac.uk/~vgg/data/flowers/102 there",
        )  # fmt: skip
        parts = _read_mat(self.folder / "setid.mat", SPLITS[options.split])
        self.numbers = np.sort(np.concatenate(parts))  # of the images, which are counted from 1
        (labels,) = _read_mat(self.folder / "imagelabels.mat", ["labels"])
        if self.numbers[-1] > len(labels) or labels.min() < 1 or labels.max() > 102:
            raise spheregen.DataError(f"{self.folder}: setid.mat and imagelabels.mat do not belong together")
        self.labels = labels[self.numbers - 1] - 1

    @classmethod
    def describe(cls, options: Options) -> spheregen.ImageSpec:
        return spheregen.ImageSpec(options.image_size, 3, 102)

    @classmethod
    def held_out(cls, options: Options) -> Options:
        if options.split == "all":
            raise ValueError('split = "all" holds nothing out; split = "train" leaves the images of "test"')
        return super().held_out(options)

    @property
    def class_names(self) -> list[str]:
        from torchvision.datasets import Flowers102 as Published

        return list(Published.classes)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return spheregen.read_image(self._path(index), self.options.image_size, 3), int(self.labels[index])

    def original(self, index: int) -> tuple[str, bytes]:
        return whole_file(self._path(index))

    def _path(self, index: int) -> Path:
        return self.folder / "jpg" / f"image_{self.numbers[index]:05d}.jpg"


def _read_mat(path: Path, names: list[str]) -> list[np.ndarray]:
    """Some integer vectors of a MATLAB file. Raises DataError where it is damaged or lacks one."""
    from scipy.io import loadmat

    try:
        values = loadmat(path, variable_names=names)
        return [values[name].ravel().astype(np.int64) for name in names]
    except Exception as error:  # scipy raises whatever the bytes of a broken file provoke
        raise spheregen.DataError(f"{path}: not the published file ({type(error).__name__}: {error})") from None


def _download(root: Path) -> None:
    from torchvision.datasets import Flowers102 as Published

    Published(root, download=True)
