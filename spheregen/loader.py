"""The order of the training images, and the draws of each step: both follow from the seed and the step alone.

Step u of a run with batch size B trains on positions u·B … u·B + B − 1 of an endless sequence in which every epoch is
a new permutation of the data set, as its source orders it. Each accumulation step of each process takes its own slice
of those positions, so that the union over processes is the same however many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from spheregen import rng
from spheregen.component import ModelShape
from spheregen.errors import SpheregenError
from spheregen.interfaces import ImageSource
from spheregen.objective import Draws
from spheregen.sphere import NoiseRange, draw_radii

# Batches that each worker makes ahead: enough to go on while one of them waits for a file.
PREFETCH = 4


@dataclass(frozen=True)
class Slices:
    """How a batch of `batch_size` is cut: into `accumulate` passes, each spread over `processes`."""

    batch_size: int
    accumulate: int = 1
    processes: int = 1
    process: int = 0

    def __post_init__(self) -> None:
        parts = self.accumulate * self.processes
        if self.batch_size % parts:
            raise SpheregenError(
                f"training.batch_size: {self.batch_size} is not divisible by {self.processes} processes × "
                f"{self.accumulate} accumulation steps"
            )

    @property
    def size(self) -> int:
        """Images in one pass of one process."""
        return self.batch_size // (self.accumulate * self.processes)

    def of(self, part: int) -> slice:
        """This process's rows of the batch in accumulation step `part`."""
        begin = (part * self.processes + self.process) * self.size
        return slice(begin, begin + self.size)


Permutation = Callable[[torch.Generator], Tensor]


class TrainingOrder(Sampler[list[int]]):
    """Indices of the images of each pass of this process, from optimizer step `step` on, without end.

    permutation: makes the order of an epoch from its generator, `ImageSource.epoch_order`; by default every permutation
    is as likely.
    """

    def __init__(
        self, dataset: int, seed: int, slices: Slices, step: int = 0, permutation: Permutation | None = None
    ) -> None:
        self.dataset, self.seed, self.slices, self.step = dataset, seed, slices, step
        self.permutation: Permutation = permutation or (lambda g: torch.randperm(dataset, generator=g))

    def __iter__(self) -> Iterator[list[int]]:
        step, current, order = self.step, -1, torch.empty(0)
        while True:
            for part in range(self.slices.accumulate):
                rows = self.slices.of(part)
                begin, end = (step * self.slices.batch_size + row for row in (rows.start, rows.stop))
                indices: list[int] = []
                while begin < end:  # a batch may span epochs
                    epoch, offset = divmod(begin, self.dataset)
                    if epoch != current:
                        order, current = self.permutation(rng.generator(self.seed, "order", epoch)), epoch
                    found = order[offset : offset + end - begin].tolist()
                    indices += found
                    begin += len(found)
                yield indices
            step += 1


def usable_cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_batches(
    source: ImageSource, seed: int, slices: Slices, step: int, workers: int, pin: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """(uint8 images [b, C, H, W], labels [b]) of each pass of this process, from optimizer step `step` on.

    workers: processes that decode, at most one a core. What the source raises arrives as it was raised, from a worker
    too.
    """
    workers = min(workers, usable_cores())
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        source,  # type: ignore[arg-type]  # a map-style data set by its methods
        batch_sampler=TrainingOrder(len(source), seed, slices, step, source.epoch_order),
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin,
    )
    try:
        yield from loader
    except SpheregenError as error:
        if not workers:
            raise
        # A worker's error arrives as its whole traceback; the last line of that is the error itself.
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None


@dataclass(frozen=True)
class StepDraws:
    """The random numbers of a whole batch, a row an image, of which each pass takes its slice."""

    r: Tensor
    r_sub: Tensor
    drop_encoder: Tensor
    drop_decoder: Tensor
    flip: Tensor
    seed: int
    first: int

    @classmethod
    def of(cls, seed: int, step: int, batch_size: int, noise: NoiseRange) -> StepDraws:
        """The draws of optimizer step `step`: radii stratified over the whole batch, on all processes."""
        generator = rng.generator(seed, "draws", step)
        r, r_sub = draw_radii(batch_size, noise, generator)
        drop_encoder, drop_decoder, flip = torch.rand(3, batch_size, generator=generator)
        return cls(r, r_sub, drop_encoder, drop_decoder, flip, seed, step * batch_size)

    def take(self, rows: slice, shape: ModelShape, device: torch.device) -> Draws:
        """The draws of some rows, with each image's noise from its own generator."""
        positions = range(self.first + rows.start, self.first + rows.stop)
        e = rng.normal((shape.tokens, shape.latent_channels), rng.generators(self.seed, "noise", positions, device))
        r, r_sub = self.r[rows].to(device), self.r_sub[rows].to(device)
        generator = rng.generator(self.seed, "regularizer", self.first, device)
        return Draws(r, r_sub, self.drop_encoder[rows].to(device), self.drop_decoder[rows].to(device), e, generator)


def to_network(images: Tensor, flip: Tensor, device: torch.device) -> Tensor:
    """uint8 [b, C, H, W] -> float in [-1, 1] on the device, mirrored where flip [b] says so."""
    x = images.to(device, non_blocking=True).float() / 127.5 - 1
    mirrored = flip.to(device).view(-1, 1, 1, 1)
    return torch.where(mirrored, x.flip(-1), x)
