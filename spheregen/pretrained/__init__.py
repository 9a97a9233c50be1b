"""Pretrained networks for plugins: weights files that are found, fetched and checked, and any timm model with its own.

net = spheregen.pretrained.timm_model(options)          # options: a TimmOptions
tensors = spheregen.pretrained.weights.read(path)
"""

from __future__ import annotations

from spheregen.pretrained import weights
from spheregen.pretrained.timm_models import TimmOptions, timm_model

__all__ = ["TimmOptions", "timm_model", "weights"]
