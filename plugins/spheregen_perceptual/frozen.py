"""What distances by a pretrained network share: how images go in, and that nothing trains it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import spheregen


class FrozenOptions(spheregen.Options):
    image_size: int | None = Field(None, gt=0)
    """Images are resized to this before the network sees them, bilinearly and with antialiasing; unset, they go in as
    they are."""


class FrozenDistance(spheregen.PerceptualDistance):
    """A distance between features of a pretrained network: frozen, always in eval mode, with gradients to the images.

    The network runs in the precision it is called in, so in bf16 under autocast; features are normalised and compared
    in float32.
    """

    mean: Tensor
    std: Tensor
    memory_format = torch.channels_last  # several times as fast in convolutions, on processors and GPUs

    def __init__(self, options: Any, image: spheregen.ImageSpec, pretrained: bool = True) -> None:
        """Raises WeightsError where the network cannot take such images, or its weights cannot be had."""
        super().__init__(options, image)
        try:
            self.check(options, image)
        except ValueError as error:
            raise spheregen.WeightsError(f"perceptual '{self.name}': {error}") from None

    @classmethod
    def untrained(cls, options: Any, image: spheregen.ImageSpec) -> Self:
        return cls(options, image, pretrained=False)

    @staticmethod
    @abstractmethod
    def network(options: Any) -> nn.Module:
        """The network without its weights; it takes images [B, 3, H, W]."""

    @classmethod
    def check(cls, options: Any, image: spheregen.ImageSpec) -> None:
        """Refuse images that the network cannot take. Needs no weights and next to no time.

        Raises ValueError with a message that begins with the option's name and a colon.
        """
        size = options.image_size or image.size
        if reason := _misfit(cls, options, size):
            raise ValueError(
                f"image_size: images of {size}×{size} do not fit the network ({reason}); set image_size to resize them"
            )

    def freeze(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """End of construction. mean, std: of the images that the network was trained on, RGB in [0, 1]."""
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=self.memory_format)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever the module around it does."""
        return super().train(False)

    def prepare(self, images: Tensor) -> Tensor:
        """images [B, 1 or 3, H, W] in [0, 1] -> what the network takes: [B, 3, S, S], normalised."""
        size = self.options.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        images = (images - self.mean) / self.std  # grey is repeated over the three colours
        return images.contiguous(memory_format=self.memory_format)


@cache
def _misfit(distance: type[FrozenDistance], options: FrozenOptions, size: int) -> str:
    """Why the network cannot take images of a size; "" where it can. Kept, since recipes ask again and again."""
    try:  # on the meta device shapes alone are computed
        with torch.device("meta"), torch.no_grad():
            distance.network(options).eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        return " ".join(str(error).split())
    return ""


def unit(features: Tensor) -> Tensor:
    """A feature map [B, C, H, W] with its channels scaled to norm 1 at every place, in float32.

    As LPIPS does it, but that a place where all channels are 0 has a finite gradient.
    """
    return F.normalize(features.float(), dim=1, eps=1e-10)
