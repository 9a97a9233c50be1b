"""Images for people: files, and grids with labels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spheregen.checkpoint import replacing
from spheregen.errors import SpheregenError
from spheregen.model import SphereModel

_SMALLEST = 64  # pixels: smaller images are enlarged by a whole factor, so that a person can see them
_LARGEST_TEXT = 32
_CAPTION = 12
_GAP, _FRAMED_GAP, _BETWEEN = 2, 10, 16
_FRAME = (214, 60, 40)


def to_pil(image: Tensor) -> Image.Image:
    """One image [C, H, W] in [0, 1] as a PIL image, grey or RGB."""
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def grid(
    images: Tensor,
    columns: int,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    title: str = "",
    captions: Sequence[str] = (),
    framed: Container[int] = (),
) -> Image.Image:
    """Images [n, C, H, W] in [0, 1], row by row, as one picture.

    Labels stand to the left and above, the title over all, captions under the images, and the images whose numbers are
    `framed` have a coloured frame. An image of NaN leaves its place empty.
    """
    size = images.shape[-1]
    cell = size * max(1, math.ceil(_SMALLEST / size))
    rows = math.ceil(len(images) / columns)
    text_height = min(max(12, cell // 5), _LARGEST_TEXT)
    gap = _FRAMED_GAP if framed else _GAP
    # Rows with captions are higher by those.
    told = [any(captions[row * columns : (row + 1) * columns]) for row in range(rows)]
    under = [sum(told[:row]) * (_CAPTION + 6) for row in range(rows + 1)]
    font = ImageFont.load_default(size=text_height)
    left = max((round(font.getlength(text)) for text in row_labels), default=0)
    left += 12 if left else 0
    line = 6 + text_height // 5  # from the letters' feet to what stands below
    head = (text_height + 14) if title else 0
    top = head + ((text_height + 14) if column_labels else 0)
    step = cell + gap
    canvas = Image.new("RGB", (left + columns * step + gap, top + rows * step + under[rows] + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = left + gap + column * step, top + gap + row * step + under[row]
        if not image.isnan().any():
            # Smoothly: blocks of 8 × 8 pixels hide from the eye what they show. Single images are written as they are.
            tile = to_pil(image).convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC)
            canvas.paste(tile, (x, y))
        if i in framed:
            draw.rectangle((x - 3, y - 3, x + cell + 2, y + cell + 2), outline=_FRAME, width=3)
        if i < len(captions):
            small = _fitting(captions[i], _CAPTION, step)
            draw.text((x + cell / 2, y + cell + 5), captions[i], fill="black", font=small, anchor="mt")
    if title:
        draw.text(
            (left + (columns * step + gap) / 2, head - line), title, fill="black", anchor="ms",
            font=_fitting(title, text_height + 2, columns * step),
        )  # fmt: skip
    for row, text in enumerate(row_labels[:rows]):
        middle = top + gap + row * step + under[row] + cell / 2
        draw.text((left - 8, middle), text, fill="black", font=font, anchor="rm")
    for column, text in enumerate(column_labels[:columns]):
        fitting = _fitting(text, text_height, step)
        draw.text((left + gap + column * step + cell / 2, top - line), text, fill="black", font=fitting, anchor="ms")
    return canvas


def beside(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures in rows, those of a row standing on one line, those of a column ending on one."""
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    heights = [max(picture.height for picture in row) for row in rows]
    canvas = Image.new(
        "RGB", (sum(widths) + _BETWEEN * (len(widths) - 1), sum(heights) + _BETWEEN * (len(rows) - 1)), "white"
    )
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture, width in zip(row, widths, strict=False):
            canvas.paste(picture, (x + width - picture.width, y + height - picture.height))
            x += width + _BETWEEN
        y += height + _BETWEEN
    return canvas


def _fitting(text: str, height: int, width: int) -> Any:
    """A font of at most this height in which the text is not wider than `width`, down to 8 pixels."""
    while (font := ImageFont.load_default(size=height)).getlength(text) > width and height > 8:
        height -= 1
    return font


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with replacing(path) as aside:
        picture.save(aside, format="PNG", optimize=True)


def file_name(number: int, title: str = "") -> str:
    """The file of a single image: its number and what it shows, as 00003-tabby-cat.png."""
    tag = re.sub(r"[^a-z0-9]+", "-", title.casefold()).strip("-") or ("class" if title else "")
    return f"{number:05d}{f'-{tag}' if tag else ''}.png"


def folder_beside(picture: Path) -> Path:
    """Where the single images of a picture go: the folder of its name without the suffix."""
    return picture.with_suffix("") if picture.suffix else picture.with_name(f"{picture.name}-singles")


def save_singles(images: Tensor, folder: Path, titles: Sequence[str] = ()) -> None:
    """Write each of images [n, C, H, W] in [0, 1] as a file of its own, `file_name` by its number and title."""
    for i, image in enumerate(images):
        save(to_pil(image), folder / file_name(i, titles[i] if titles else ""))


def save_animation(frames: Sequence[Image.Image], path: Path, milliseconds: int = 80) -> None:
    """Frames as an animation without end, WebP (lossless) or GIF by the path's suffix."""
    kind = path.suffix[1:].upper()
    if kind not in ("WEBP", "GIF"):
        raise SpheregenError(f"{path}: an animation is a .webp or .gif")
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"disposal": 2}
    with replacing(path) as aside:
        first, *rest = frames
        first.save(aside, kind, save_all=True, append_images=rest, duration=milliseconds, loop=0, **options)


def class_grid(model: SphereModel, sample: Callable[..., Tensor], seed: int = 0) -> Image.Image:
    """A row of samples a class, as the recipe's [sampling] says; without classes, as many rows of the same length."""
    assert model.recipe is not None
    options: Any = model.recipe.sampling
    classes = min(model.shape.num_classes, options.classes)
    if not classes:
        return grid(sample(model, count=options.classes * options.per_class, seed=seed), options.per_class)
    labels = torch.arange(classes).repeat_interleave(options.per_class)
    return grid(sample(model, labels, seed=seed), options.per_class, model.class_names[:classes])
