"""scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn import functional as F

import spheregen
from spheregen_data.sources import TensorSource


class Digits(TensorSource, name="digits"):
    """Handwritten digits of 8×8 pixels, grey, 10 classes, 1,797 images that come with scikit-learn.

    A fixed stratified split keeps 360 of them for testing. Grey values 0…16 become round(x·255/16).
    """

    class Options(spheregen.Options):
        split: Literal["train", "test"] = "train"
        """Which part of the set: 1,437 or 360 images."""
        image_size: int = Field(8, ge=8)
        """Height and width; above 8, enlarged bilinearly."""

    def __init__(self, options: Options) -> None:
        from sklearn.datasets import load_digits  # slow to import, and only wanted here
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        parts = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
        rows = sorted(parts[0 if options.split == "train" else 1])
        images = torch.from_numpy(pixels[rows]).float().view(-1, 1, 8, 8) * (255 / 16)
        if options.image_size != 8:
            images = F.interpolate(images, options.image_size, mode="bilinear", antialias=True)
        super().__init__(options, images.round().to(torch.uint8), torch.from_numpy(labels[rows]))

    @classmethod
    def describe(cls, options: Options) -> spheregen.ImageSpec:
        return spheregen.ImageSpec(options.image_size, 1, 10)
