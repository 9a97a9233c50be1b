"""How interpolations are shown: among the images they start from, and moving."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from spheregen import pictures


def surround(square: Tensor, ends: Tensor, corners: bool) -> Tensor:
    """Rows of frames [rows, n, C, H, W] with the images `ends` left and right of each, or outside the corners."""
    if not corners:
        return torch.cat([ends[::2].unsqueeze(1), square, ends[1::2].unsqueeze(1)], dim=1)
    rows, columns, *image = square.shape
    around = torch.full((rows + 2, columns + 2, *image), torch.nan)
    around[1:-1, 1:-1] = square
    around[[0, 0, -1, -1], [0, -1, 0, -1]] = ends
    return around


def edges(count: int) -> Tensor:
    """Places along the four edges of the square, `count` an edge, once around: [4 · count, 2]."""
    line = torch.arange(count) / count
    zero, one = torch.zeros_like(line), torch.ones_like(line)
    sides = [(line, zero), (one, line), (1 - line, one), (zero, 1 - line)]
    return torch.cat([torch.stack(side, dim=1) for side in sides])


def around(frames: Tensor, corners: Tensor) -> list[Image.Image]:
    """Frames [n, C, H, W], each in the middle of the four corners [4, C, H, W]."""
    empty = torch.full_like(corners[0], torch.nan)
    a, b, c, d = corners
    return [
        pictures.grid(torch.stack([a, empty, b, empty, frame, empty, c, empty, d]), 3, framed=[0, 2, 6, 8])
        for frame in frames
    ]


def there_and_back(tracks: Tensor, ends: Tensor, titles: list[str]) -> list[Image.Image]:
    """Rows of frames [rows, n, C, H, W], each moving between its two ends [rows, 2, C, H, W] and back."""
    first, last = ends.unbind(1)
    sides = [i for i in range(3 * len(tracks)) if i % 3 != 1]
    shown = [
        pictures.grid(torch.stack([first, moving, last], dim=1).flatten(0, 1), 3, titles, framed=sides)
        for moving in tracks.unbind(1)
    ]
    return [*shown, *shown[-2:0:-1]]
