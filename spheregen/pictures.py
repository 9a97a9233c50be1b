"""Images for people: files, and grids with labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spheregen.model import SphereModel

_SMALLEST = 64  # pixels: smaller images are enlarged by a whole factor, so that a person can see them
_GAP = 2


def to_pil(image: Tensor) -> Image.Image:
    """One image [C, H, W] in [0, 1] as a PIL image, grey or RGB."""
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def grid(
    images: Tensor, columns: int, row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> Image.Image:
    """Images [n, C, H, W] in [0, 1], row by row, as one picture; labels stand to the left and above."""
    size = images.shape[-1]
    factor = max(1, math.ceil(_SMALLEST / size))
    cell = size * factor
    rows = math.ceil(len(images) / columns)
    font = ImageFont.load_default(size=max(12, cell // 5))
    left = max((round(font.getlength(text)) for text in row_labels), default=0)
    left += 12 if left else 0
    top = (cell // 5 + 14) if column_labels else 0
    step = cell + _GAP
    canvas = Image.new("RGB", (left + columns * step + _GAP, top + rows * step + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        # Smoothly: blocks of 8 × 8 pixels hide from the eye what they show. Single images are written as they are.
        tile = to_pil(image).convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC)
        canvas.paste(tile, (left + _GAP + column * step, top + _GAP + row * step))
    for row, text in enumerate(row_labels[:rows]):
        draw.text((left - 8, top + _GAP + row * step + cell / 2), text, fill="black", font=font, anchor="rm")
    for column, text in enumerate(column_labels[:columns]):
        draw.text((left + _GAP + column * step + cell / 2, top - 6), text, fill="black", font=font, anchor="mb")
    return canvas


def class_grid(model: SphereModel, sample: Callable[..., Tensor], seed: int = 0) -> Image.Image:
    """A row of samples a class, as the recipe's [sampling] says; without classes, as many rows of the same length."""
    assert model.recipe is not None
    options: Any = model.recipe.sampling
    classes = min(model.shape.num_classes, options.classes)
    if not classes:
        return grid(sample(model, count=options.classes * options.per_class, seed=seed), options.per_class)
    labels = torch.arange(classes).repeat_interleave(options.per_class)
    return grid(sample(model, labels, seed=seed), options.per_class, model.class_names[:classes])
