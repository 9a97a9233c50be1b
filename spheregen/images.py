"""From an image file to pixels: any file that PIL reads becomes uint8 [C, S, S]."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from spheregen.errors import DataError

# PIL warns of images beyond 89 megapixels, which cameras make, and refuses twice as many, which is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Images longer than so many times their width are shortened before they are scaled: their scaled form might not fit
# in memory.
_LONGEST = 32


def read_image(
    file: str | Path | BinaryIO,
    size: int,
    channels: int,
    *,
    draft: bool = False,
    name: str = "",
    megapixels: float = math.inf,
) -> Tensor:
    """An image file -> contiguous uint8 [channels, size, size], turned upright, scaled and cropped to its centre.

    draft: let the JPEG decoder halve a photo, and halve again, while its shorter side stays at least twice `size`.
    Large photos are read several times faster; pixels differ by some grey levels from those of the box filter that
    halves them otherwise. name: what errors call the file; its path where nothing else is said.
    megapixels: the largest image to read; memory grows with it.

    Raises DataError that names the file and the reason where it cannot be read.
    """
    name = name or str(file)
    try:
        with Image.open(file) as opened:
            found = opened.width * opened.height / 1e6
            if found > megapixels:
                raise DataError(f"{name}: has {found:.0f} megapixels; expected at most {megapixels:g}, make it smaller")
            if draft and opened.format == "JPEG":
                # Draft takes the smallest scale that covers the box it is given in both directions.
                opened.draft("L" if channels == 1 else "RGB", (2 * size, 2 * size))
            ImageOps.exif_transpose(opened, in_place=True)
            opened.load()
            image = flatten(opened, channels)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that can be read") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: too large to be read: {error}") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # PIL's readers raise whatever the bytes of a broken file provoke
        raise DataError(f"{name}: cannot be read: {type(error).__name__}: {error}") from None
    return to_tensor(centre_crop(image, size))


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode -> mode L (channels 1) or RGB (3). What is transparent is laid on white; 16-bit grey is
    scaled to 8. Raises ValueError for floats and for integers beyond 16 bits, whose range nobody knows."""
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range")
    if image.mode.startswith("I"):  # I;16 and its byte orders; 16-bit PNGs are mode I under older versions of Pillow
        pixels = np.asarray(image).astype(np.float32)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("pixels are 32-bit integers of unknown range")
        image = Image.fromarray(np.rint(pixels / 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if image.mode == "LAB":  # PIL converts it to RGB alone
        image = image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert would copy


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image, size×size, as ADM prepares ImageNet: halved by a box filter while the shorter
    side is at least twice too long, then scaled by a bicubic one, then cropped."""
    image = _middle(image, *(min(side, _LONGEST * min(image.size)) for side in image.size))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _middle(image, size, size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_tensor(image: Image.Image) -> Tensor:
    """An image of mode L or RGB -> contiguous uint8 [C, H, W]."""
    # Band by band: several times faster than to reorder the pixels afterwards.
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))
