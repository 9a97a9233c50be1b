"""Regularizers between the encoder and the sphere (Appendix C.3)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

import spheregen


class NoRegularizer(spheregen.Regularizer, name="none"):
    """The paper's default: noisy spherifying alone spreads the latents."""


class BatchNorm(spheregen.Regularizer, name="batchnorm"):
    """Batch normalisation of the flattened latent: one statistic a coordinate, no affine parameters.

    While training, statistics are those of the batch on all processes together; afterwards, running averages.
    """

    class Options(spheregen.Options):
        momentum: float = Field(0.1, gt=0, le=1)
        """Weight of a batch in the running averages."""
        eps: float = Field(1e-5, gt=0)
        """Added to the variance."""

    def __init__(self, options: Options, shape: spheregen.ModelShape) -> None:
        super().__init__(options, shape)
        self.norm = nn.BatchNorm1d(shape.latent_dim, eps=options.eps, momentum=options.momentum, affine=False)

    def forward(self, z: Tensor) -> Tensor:
        flat = z.flatten(1).float()
        if not self.training:
            return self.norm(flat).view(z.shape)
        mean, square = batch_mean(flat), batch_mean(flat.square())
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            weight = self.options.momentum
            assert self.norm.running_mean is not None
            assert self.norm.running_var is not None
            self.norm.running_mean.lerp_(mean, weight)
            self.norm.running_var.lerp_(variance, weight)
        return ((flat - mean) * torch.rsqrt(variance + self.options.eps)).view(z.shape)


def batch_mean(x: Tensor) -> Tensor:
    """The mean over the first dimension of x [B, L], on all processes together, with gradients through all of them.

    nn.SyncBatchNorm would do, but it refuses processors.
    """
    mean = x.mean(0)
    if dist.is_initialized() and dist.get_world_size() > 1:
        mean = all_reduce(mean) / dist.get_world_size()
    return mean


@spheregen.hookimpl
def spheregen_components() -> list[type[spheregen.Component]]:
    return [NoRegularizer, BatchNorm]
