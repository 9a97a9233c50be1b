"""Steps that would harm a model: gradients or losses that are not finite, or far above those of the steps before.

Everything is decided and counted on the device; the host reads the counts when it logs. The same numbers lead to the
same decision on every process, and on a run that was resumed, whose checkpoint holds the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spheregen.errors import RunError


class StepGuard:
    """Judges each step by its gradient's norm and its loss, and skips those that are not finite or are spikes.

    A spike is a value above `factor` times its median over the last `window` steps that were taken; before there were
    so many, and with factor 0, there are none. Medians of 0 or less, which losses of plugins may have, judge nothing.

    buffers: statistics that the forward pass updates; after a step that is skipped they are put back.
    """

    def __init__(self, factor: float, window: int, device: torch.device, buffers: Iterable[Tensor] = ()) -> None:
        self.factor, self.window = factor, window
        # Norms in the first row, losses in the second, in a ring.
        self.recent = torch.full((2, window), torch.nan, device=device)
        self.last_skipped = torch.full((2,), torch.nan, device=device)
        # Steps taken, steps skipped, skipped in a row up to now, the longest such row.
        self.counts = torch.zeros(4, dtype=torch.int64, device=device)
        self.slots = torch.arange(window, device=device)
        self.buffers = list(buffers)
        self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def judge(self, norm: Tensor, loss: Tensor) -> Tensor:
        """The gradient's norm and this process's loss, scalars -> whether to take the step: a bool scalar, the same on
        all processes. Nothing here waits for the device."""
        values = torch.stack([norm.float(), loss.float()])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values)
            values /= dist.get_world_size()
        good = values.isfinite().all()
        if self.factor:
            usual = self.recent.median(dim=1).values  # NaN, with which no comparison holds, until the ring is full
            good &= ~((values > self.factor * usual) & (usual > 0)).any()

        slot = (self.slots == self.counts[0] % self.window) & good
        self.recent = torch.where(slot, values.unsqueeze(1), self.recent)
        self.last_skipped = torch.where(good, self.last_skipped, values)
        taken, skipped, row, longest = self.counts
        row = torch.where(good, 0, row + 1)
        self.counts = torch.stack([taken + good, skipped + ~good, row, torch.maximum(longest, row)])
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(torch.where(good, buffer, kept))
            kept.copy_(buffer)
        return good

    def read(self, limit: int, where: str) -> tuple[int, int]:
        """Steps taken and steps skipped since the run began. Waits for the device.

        Raises RunError, which begins with `where`, if more than `limit` in a row were skipped.
        """
        taken, skipped, _, longest = self.counts.tolist()
        if longest > limit:
            norm, loss = self.last_skipped.tolist()
            usual_norm, usual_loss = self.recent.nanmedian(dim=1).values.tolist()
            usual = f" (usual: {usual_norm:.3g} and {usual_loss:.3g})" if usual_norm == usual_norm else ""
            raise RunError(
                f"{where}: {longest} steps in a row were skipped, the last with gradient norm {norm:.3g} and loss "
                f"{loss:.3g}{usual}; train anew with a lower training.lr or noise.wide_angle, or go on from the last "
                "checkpoint with another training.spike_factor"
            )
        return taken, skipped

    # -- its part of a checkpoint ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        return {"recent": self.recent, "last_skipped": self.last_skipped, "counts": self.counts}

    def settle(self) -> None:
        """After a checkpoint was read into `state()` and into the buffers: what is there now is good."""
        self.counts[3] = self.counts[2]  # a row that ended before counts no more
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            kept.copy_(buffer)


def statistics_of(module: nn.Module) -> Iterator[Tensor]:
    """The buffers of a module that are part of its state, as running averages are."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return (tensor for name, tensor in module.state_dict().items() if name not in parameters)
