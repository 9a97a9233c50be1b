"""Perceptual distances: LPIPS, the features of any timm model, and weighted means of them (Appendix D)."""

from __future__ import annotations

import spheregen
from spheregen_perceptual.lpips_distance import LPIPSDistance
from spheregen_perceptual.mean import MeanDistance
from spheregen_perceptual.timm_distance import TimmDistance


@spheregen.hookimpl
def spheregen_components() -> list[type[spheregen.Component]]:
    return [LPIPSDistance, TimmDistance, MeanDistance]
