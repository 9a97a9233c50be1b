"""How a run is asked to stop: by signals, and by all of its processes together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist


class Stoppable(Protocol):
    stop: bool


@contextmanager
def stopping_on_signals(trainer: Stoppable) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step under way; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def own_group(processes: int) -> dist.ProcessGroup | None:
    """A group of all processes for messages that must not mix with those of training, None for one process. gloo, so
    that no device takes part."""
    if processes == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


class Agreement:
    """A decision that all processes take together, without waiting for one another or for the device.

    What each says goes around while the next step is computed, so that with several processes it is heard one step
    later; all hear it at the same step.
    """

    def __init__(self, processes: int) -> None:
        self.group = own_group(processes)
        self.flag = torch.zeros((), dtype=torch.int32)
        self.under_way: dist.Work | None = None

    def any(self, wish: bool) -> bool:
        """Whether any process wished it; called by all of them once a step."""
        if self.group is None:
            return wish
        heard = False
        if self.under_way is not None:
            self.under_way.wait()
            heard = bool(self.flag)
        self.flag = torch.tensor(int(wish), dtype=torch.int32)
        self.under_way = dist.all_reduce(self.flag, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return heard

    def settle(self) -> None:
        """Let what is under way arrive."""
        if self.under_way is not None:
            self.under_way.wait()
            self.under_way = None
