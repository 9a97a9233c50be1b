"""Regularizers between the encoder and the sphere (Appendix C.3)."""

from __future__ import annotations

import spheregen
from spheregen_regularizers.batchnorm import BatchNorm
from spheregen_regularizers.swd import SlicedWasserstein


class NoRegularizer(spheregen.Regularizer, name="none"):
    """The paper's default: noisy spherifying alone spreads the latents."""


@spheregen.hookimpl
def spheregen_components() -> list[type[spheregen.Component]]:
    return [NoRegularizer, BatchNorm, SlicedWasserstein]
