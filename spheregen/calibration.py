"""Recalibration of batch statistics before sampling (Appendix C.4), for regularizers that keep some (Appendix C.3).

The running averages of training belong to encoded real images under noise; generation encodes generated ones. Four ways
to go about that:

trained     use what training gathered.
none        forget it, and use each batch's own statistics as it is generated: an image then depends on its batch.
reference   gather anew, over encoded training images.
generated   gather anew, over the encodings met in generating 500 images.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from spheregen import generation, rng
from spheregen.errors import SpheregenError, suggest
from spheregen.interfaces import ImageSource
from spheregen.model import SphereModel
from spheregen.reference import read_images, spaced

RECALIBRATIONS = ("trained", "none", "reference", "generated")
REFERENCE_IMAGES = 10_000
GENERATED_IMAGES = 500  # the paper's number


def check_recalibrations(model: SphereModel, ways: Sequence[str]) -> None:
    """Refuse ways that are not known, and others than "trained" where there are no statistics.

    Raises SpheregenError.
    """
    for how in ways:
        if how not in RECALIBRATIONS:
            raise SpheregenError(f"recalibration: {suggest(how, RECALIBRATIONS)}")
        if how != "trained" and not model.regularizer.has_statistics:
            name = model.regularizer.name or type(model.regularizer).__name__
            raise SpheregenError(f"recalibration: {how}: this model's regularizer, {name}, keeps no batch statistics")


def recalibrated(
    model: SphereModel, how: str, *, source: ImageSource | None = None, batch_size: int = 250, **way: Any
) -> SphereModel:
    """The model with other batch statistics (Appendix C.4), networks shared with the one given, which stays as it is.

    source: the images of "reference", of which at most 10,000, evenly spread, are encoded under their labels. way: how
    the images of "generated" are sampled, the settings of `spheregen.sample`; in two steps at least, for one
    encodes nothing. Raises SpheregenError for a way that is not known, and for a model that keeps no statistics.
    """
    check_recalibrations(model, [how])
    if how == "trained":
        return model
    made = model.sharing(regularizer=copy.deepcopy(model.regularizer)).eval()
    if how == "none":
        made.regularizer.go_live()
        return made
    with made.regularizer.gathering():
        if how == "reference":
            if source is None:
                raise SpheregenError("recalibration: reference needs images")
            _encode(made, source, batch_size)
        else:
            classes = model.shape.num_classes
            labels = torch.arange(GENERATED_IMAGES) % classes if classes else None
            asked = way.get("steps") or (model.recipe.sampling.steps if model.recipe else 2)
            way["steps"] = max(2, asked)
            seed = rng.stream(0, "calibration")  # other noise than that of the samples which will be measured
            generation.sample(made, labels, count=GENERATED_IMAGES, batch_size=batch_size, seed=seed, **way)
    return made


@torch.no_grad()
def _encode(model: SphereModel, source: ImageSource, batch_size: int) -> None:
    device = next(model.parameters()).device
    for picks in spaced(len(source), min(len(source), REFERENCE_IMAGES)).split(batch_size):
        images, labels = read_images(source, picks)
        y = labels.to(device) if model.shape.num_classes else None
        model.encode(images.to(device) * 2 - 1, y)


__all__ = ["RECALIBRATIONS", "check_recalibrations", "recalibrated"]
