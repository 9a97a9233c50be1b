"""What a classifier sees in samples: one that learnt a recipe's real images, and has not met the model.

A support vector machine with a Gaussian kernel, on pixels: it learns in seconds to minutes and has no parameter to tune
here. How far it is to be trusted its accuracy on held-out images tells, which stands beside every figure.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import SVC
from torch import Tensor

import spheregen
from spheregen.reference import read_images, spaced

Array = NDArray[np.float32]
Labels = NDArray[np.int64]


def flat(images: Tensor) -> Array:
    """Images [n, C, H, W] in [0, 1] as rows."""
    return images.flatten(1).numpy()


def rows_of(source: spheregen.ImageSource, limit: int | None = None, flip: float = 0) -> tuple[Array, Labels]:
    """A source's images as rows, and their labels: all, or so many of them, evenly spread.

    flip: the share to mirror. A model that was trained on mirrored images makes some, and a classifier that has seen
    none would take them for something else.
    """
    images, labels = read_images(source, spaced(len(source), min(limit or len(source), len(source))))
    mirrored = torch.rand(len(images), generator=torch.Generator().manual_seed(0)) < flip
    return flat(torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)), labels.numpy()


def train_classifier(images: Array, labels: Labels) -> SVC:
    """A classifier of rows of pixels."""
    return SVC(C=10).fit(images, labels)


def confusion(classifier: SVC, images: Array, labels: Labels, classes: int) -> NDArray[np.float64]:
    """The shares [classes, classes] of each class's images (rows) that are seen as each class (columns): agreement is
    the diagonal. A row of NaN where there are no images of a class."""
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels, classifier.predict(images)), 1)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(1, keepdims=True)
