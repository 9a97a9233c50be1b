"""The sliced Wasserstein distance of latents to the uniform distribution on the sphere, as a loss (Appendix C.3)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.distributed.nn.functional import all_gather

import spheregen
from spheregen_regularizers.batchnorm import BatchNorm


def orthogonal_directions(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """`count` unit vectors [dim, count], each uniform on its sphere and orthogonal to the others (Rowland et al. 2019,
    Algorithm 3): the Q of Gaussian matrices. More than `dim` of them come in blocks, orthogonal within each."""
    blocks = []
    for start in range(0, count, dim):
        gaussian = torch.randn(dim, min(dim, count - start), generator=generator, device=generator.device)
        q, r = torch.linalg.qr(gaussian)
        blocks.append(q * r.diagonal().sign())  # QR's choice of signs is not uniform
    return torch.cat(blocks, dim=1)


def wasserstein(a: Tensor, b: Tensor, p: int) -> Tensor:
    """W_p^p between samples of as many numbers, a column a distribution: a, b [n, P] -> [P]."""
    return (a.sort(dim=0).values - b.sort(dim=0).values).abs().pow(p).mean(0)


class SlicedWasserstein(spheregen.Regularizer, name="swd"):
    """A loss: the mean over random directions of W_p^p between the latents, before they are spherified, and as many
    fresh uniform points of the sphere, both projected onto the direction.

    Directions and points are drawn anew at every step, the same on all processes; latents are those of all processes
    together, and of the cache of past ones where there is one. All of it costs memory of L·(directions + 2·rows)
    numbers, which is why the paper finds it expensive at large L.
    """

    class Options(spheregen.Options):
        weight: float = Field(1.0, ge=0)
        """Weight of the loss in the objective."""
        directions: int = Field(128, gt=0)
        """Random directions, orthogonal to each other."""
        p: Literal[1, 2] = 2
        """Order of the distance."""
        cache: int = Field(0, ge=0)
        """Latents of past steps beside the batch's own, without gradients; saved with the weights. 0 keeps none."""
        batchnorm: BatchNorm.Options | None = None
        """Batch normalisation before it, with its options, as the paper's third variant has it; unset, none."""

    def __init__(self, options: Options, shape: spheregen.ModelShape) -> None:
        super().__init__(options, shape)
        self.norm = BatchNorm(options.batchnorm, shape) if options.batchnorm else None
        self.past: Tensor
        # It starts full of uniform points, so that its size never changes.
        self.register_buffer("past", spheregen.sphere.spherify(torch.randn(options.cache, shape.latent_dim)))

    def forward(self, z: Tensor) -> Tensor:
        return z if self.norm is None else self.norm(z)

    def loss(self, z: Tensor, generator: torch.Generator) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            latents = self._with_past(everywhere(z.flatten(1).float()))
            directions = orthogonal_directions(self.options.directions, latents.shape[1], generator)
            points = torch.randn(latents.shape, generator=generator, device=generator.device)
            target = spheregen.sphere.spherify(points)
            distances = wasserstein(latents @ directions, target @ directions, self.options.p)
            return self.options.weight * distances.mean()

    def _with_past(self, latents: Tensor) -> Tensor:
        """latents [B, L] -> with the cache's rows before them, into which they pass."""
        both = torch.cat([self.past, latents])
        with torch.no_grad():
            self.past.copy_(both[len(both) - len(self.past) :])
        return both

    @property
    def has_statistics(self) -> bool:
        return self.norm is not None

    def go_live(self) -> None:
        if self.norm is not None:
            self.norm.go_live()

    def gathering(self) -> AbstractContextManager[None]:
        return nullcontext() if self.norm is None else self.norm.gathering()


def everywhere(x: Tensor) -> Tensor:
    """x [B, L] of every process, one after the other, with gradients to all of them."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        return torch.cat(all_gather(x.contiguous()))
    return x
