"""The features or logits of any timm model as a distance."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

import spheregen
from spheregen_perceptual.folding import without_batch_norms
from spheregen_perceptual.frozen import FrozenDistance, FrozenOptions, unit


class TimmDistance(FrozenDistance, name="timm"):
    """Squared differences of a timm model's features or logits.

    layers = "features": of the maps after each of its stages, channels scaled to norm 1 at every place as in LPIPS,
    the sum over channels, averaged over places and stages: 2·(1 − cosine), from 0 to 4. layers = "logits": the mean
    over the class scores (the paper's second distance, with ConvNeXt-Small at 224).
    """

    class Options(spheregen.pretrained.TimmOptions, FrozenOptions):
        layers: Literal["features", "logits"] = "features"
        """What is compared."""

    def __init__(self, options: Options, image: spheregen.ImageSpec, pretrained: bool = True) -> None:
        super().__init__(options, image, pretrained)
        if pretrained:
            self.net = spheregen.pretrained.timm_model(options, features_only=options.layers == "features")
        else:
            self.net = self.network(options)
        cfg: dict[str, Any] = self.net.pretrained_cfg  # type: ignore[assignment]
        self.freeze(cfg["mean"], cfg["std"])
        size = options.image_size or image.size
        example = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        self.net = without_batch_norms(self.net, self.prepare(example))
        self.depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in self.net.modules())

    @staticmethod
    def network(options: Options) -> nn.Module:
        import timm  # slow to import

        return timm.create_model(options.model, features_only=options.layers == "features")

    @classmethod
    def check(cls, options: Options, image: spheregen.ImageSpec) -> None:
        from timm.models import get_pretrained_cfg

        cfg = get_pretrained_cfg(options.model)
        size = options.image_size or image.size
        # The whole network takes images of the size that it was trained on; any other size is tried.
        if options.layers == "features" or cfg is None or cfg.input_size[1:] != (size, size):
            super().check(options, image)

    def features(self, images: Tensor) -> list[Tensor]:
        """images [B, C, H, W] in [0, 1] -> [the logits [B, K]], or unit-normalised maps [B, C', H', W']."""
        # Depthwise convolutions are twice as slow in bf16 as in float32 on processors.
        with torch.autocast("cpu", enabled=False) if images.is_cpu and self.depthwise else nullcontext():
            output = self.net(self.prepare(images))
        if self.options.layers == "logits":
            return [output.float()]
        # Swin and its like put the channels last.
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return [unit(f.permute(0, 3, 1, 2) if last else f) for f in output]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        squares = [(fa - fb).square() for fa, fb in zip(a, b, strict=True)]
        if self.options.layers == "logits":
            return squares[0].mean(1)
        return sum(square.sum(1).mean((1, 2)) for square in squares) / len(squares)  # type: ignore[return-value]
