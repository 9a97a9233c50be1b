"""Training's metrics and sample grids for TensorBoard, in the run folder's tensorboard/.

Not in use unless named: `plugins = ["spheregen_tensorboard"]` in a recipe, or `--plugin spheregen_tensorboard`. Needs
`pip install spheregen[tensorboard]`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import spheregen

_writers: dict[Path, SummaryWriter] = {}


def _writer(trainer: spheregen.Trainer) -> SummaryWriter:
    folder = trainer.run.path / "tensorboard"
    if folder not in _writers:
        # Entries that an interrupted run made after its last checkpoint are about to be made again.
        _writers[folder] = SummaryWriter(str(folder), purge_step=trainer.images_seen + 1)
    return _writers[folder]


@spheregen.hookimpl
def spheregen_metrics(trainer: spheregen.Trainer, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        if name not in ("step", "images"):
            _writer(trainer).add_scalar(name, value, trainer.images_seen)


@spheregen.hookimpl
def spheregen_samples_saved(trainer: spheregen.Trainer, path: Path) -> None:
    _writer(trainer).add_image("samples", np.asarray(Image.open(path)), trainer.images_seen, dataformats="HWC")


@spheregen.hookimpl
def spheregen_train_end(trainer: spheregen.Trainer) -> None:
    _writers.pop(trainer.run.path / "tensorboard", _writer(trainer)).close()
