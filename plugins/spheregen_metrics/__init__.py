"""Networks whose features metrics compare: torch-fidelity's Inception, and any timm model."""

from __future__ import annotations

import spheregen
from spheregen_metrics.inception import InceptionFeatures
from spheregen_metrics.timm_features import TimmFeatures


@spheregen.hookimpl
def spheregen_components() -> list[type[spheregen.Component]]:
    return [InceptionFeatures, TimmFeatures]
