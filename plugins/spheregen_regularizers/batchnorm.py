"""Batch normalisation of latents (Appendix C.3), and its recalibration (Appendix C.4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

import spheregen


class BatchNorm(spheregen.Regularizer, name="batchnorm"):
    """Batch normalisation of the flattened latent: one statistic a coordinate, no affine parameters.

    While training, statistics are those of the batch on all processes together; afterwards, running averages, or
    what a recalibration makes of them.
    """

    class Options(spheregen.Options):
        momentum: float = Field(0.1, gt=0, le=1)
        """Weight of a batch in the running averages."""
        eps: float = Field(1e-5, gt=0)
        """Added to the variance."""

    def __init__(self, options: Options, shape: spheregen.ModelShape) -> None:
        super().__init__(options, shape)
        self.norm = nn.BatchNorm1d(shape.latent_dim, eps=options.eps, momentum=options.momentum, affine=False)
        self._live = False
        self._gathered: int | None = None  # batches averaged so far in a recalibration, None outside of one

    def forward(self, z: Tensor) -> Tensor:
        flat = z.flatten(1).float()
        if not (self.training or self._live):
            return self.norm(flat).view(z.shape)
        mean, square = self._batch_mean(flat), self._batch_mean(flat.square())
        variance = (square - mean.square()).clamp(min=0)
        weight = self.options.momentum
        if self._gathered is not None:  # a plain average over batches
            self._gathered += 1
            weight = 1 / self._gathered
        with torch.no_grad():
            assert self.norm.running_mean is not None
            assert self.norm.running_var is not None
            self.norm.running_mean.lerp_(mean, weight)
            self.norm.running_var.lerp_(variance, weight)
        return ((flat - mean) * torch.rsqrt(variance + self.options.eps)).view(z.shape)

    @property
    def has_statistics(self) -> bool:
        return True

    def go_live(self) -> None:
        self.norm.reset_running_stats()
        self._live = True

    @contextmanager
    def gathering(self) -> Iterator[None]:
        self.go_live()
        self._gathered = 0
        try:
            yield
        finally:
            self._live, self._gathered = False, None

    def _batch_mean(self, x: Tensor) -> Tensor:
        """The mean over the first dimension of x [B, L]; in training that of all processes together, with gradients
        through all of them. nn.SyncBatchNorm would do, but it refuses processors."""
        mean = x.mean(0)
        if self.training and dist.is_initialized() and dist.get_world_size() > 1:
            mean = all_reduce(mean) / dist.get_world_size()
        return mean
