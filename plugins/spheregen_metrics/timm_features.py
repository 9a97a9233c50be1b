"""Features of any timm model."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import spheregen


class TimmFeatures(spheregen.FeatureExtractor, name="timm"):
    """Pooled features and class scores of a timm model. Metrics under it carry its name: FD(efficientnet_lite0)."""

    class Options(spheregen.pretrained.TimmOptions):
        image_size: int | None = Field(None, gt=0)
        """Images are resized to this first, bilinearly and with antialiasing; unset, they go in as they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, options: Options) -> None:
        """Raises WeightsError where the weights cannot be had or do not fit."""
        super().__init__(options)
        self.net: Any = spheregen.pretrained.timm_model(options)
        cfg: dict[str, Any] = self.net.pretrained_cfg  # type: ignore[assignment]
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(cfg["std"]).view(3, 1, 1))
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    @property
    def label(self) -> str:
        architecture, _, tag = self.options.model.removeprefix("tf_").partition(".")
        return f"{architecture}.{tag}" if tag else architecture

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images [B, C, H, W] in [0, 1] -> pooled features [B, F], logits [B, K]."""
        images = (images * 255).round() / 255  # what a file would hold
        if size := self.options.image_size:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self.net.forward_head(self.net.forward_features(images), pre_logits=True)
        return features.float(), self.net.get_classifier()(features).float()
