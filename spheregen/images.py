"""From an image file to pixels: any file that PIL reads becomes uint8 [C, S, S]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from spheregen.errors import DataError


def read_image(path: str | Path, size: int, channels: int) -> Tensor:
    """An image file -> contiguous uint8 [channels, size, size], turned upright, scaled and cropped to its centre.

    Raises DataError that names the file and the reason where it cannot be read.
    """
    try:
        with Image.open(path) as file:
            image = flatten(ImageOps.exif_transpose(file), channels)
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that can be read") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # PIL's readers raise whatever the bytes of a broken file provoke
        raise DataError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    return to_tensor(centre_crop(image, size))


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode -> mode L (channels 1) or RGB (3). What is transparent is laid on white; 16-bit grey is
    scaled to 8. Raises ValueError for floats, whose range nobody knows."""
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range")
    if image.mode.startswith("I"):  # I;16 and its byte orders; 16-bit PNGs are mode I under older versions of Pillow
        pixels = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(pixels / 257), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("L" if channels == 1 else "RGB")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image, size×size, as ADM prepares ImageNet: halved by a box filter while the shorter
    side is at least twice too long, then scaled by a bicubic one, then cropped."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> Tensor:
    """An image of mode L or RGB -> contiguous uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(image))
    return (pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)).contiguous()
