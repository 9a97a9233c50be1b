"""One thread that uses the model. Jobs wait for each other, and end between two steps when nobody listens any more."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import traceback
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from spheregen import pictures
from spheregen.errors import SpheregenError
from spheregen.generation import Step
from spheregen.studio.requests import Job

WAITING = 16  # jobs at once, the one under way among them
PENDING = 4  # events that wait to be sent

Event = dict[str, Any]


class BusyError(SpheregenError):
    """Too many jobs are waiting."""


class _GoneError(Exception):
    """Nobody listens any more."""


class Worker:
    """The queue before the model."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "studio")
        self._tickets: list[Ticket] = []

    def submit(self, job: Job) -> Ticket:
        """Put a job at the end of the queue. Raises BusyError where that is long. To be called in the event loop."""
        if len(self._tickets) >= WAITING:
            raise BusyError(f"busy: {WAITING} requests are waiting already; try again in a while")
        ticket = Ticket(job, ahead=len(self._tickets))
        self._tickets.append(ticket)
        future = asyncio.wrap_future(self._thread.submit(ticket.run))
        future.add_done_callback(lambda _: self._tickets.remove(ticket))
        return ticket

    def close(self) -> None:
        """End all jobs as soon as their step is done."""
        for ticket in self._tickets:
            ticket.cancel()
        self._thread.shutdown(wait=False)


class Ticket:
    """A job in the queue, as a stream of events.

    {"waiting": n}: so many are before it; {"step", "steps", "images"}: a step, its images as base64 of PNG; at the end
    {"images", "command", "files", "titles", "labels"} or {"error": message}.
    """

    def __init__(self, job: Job, ahead: int) -> None:
        self._job = job
        self._gone = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue(PENDING)
        if ahead:
            self._events.put_nowait({"waiting": ahead})

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            yield event

    def cancel(self) -> None:
        """End the job before its next step."""
        self._gone.set()

    def run(self) -> None:
        """In the model's thread."""
        job = self._job
        try:
            self._tell({"step": 0, "steps": job.steps})
            images = encode(job.work(self._show))
            labels: list[int | None] = [*job.labels] if job.labels else [None] * len(images)
            told = {"command": job.command, "files": job.files, "titles": job.titles, "labels": labels}
            self._tell({"images": images, **told})
        except _GoneError:
            pass
        except SpheregenError as error:
            self._send({"error": str(error)})
        except Exception as error:  # whatever a plugin raises: the page hears of it, and the next job is done
            traceback.print_exc()
            self._send({"error": f"{type(error).__name__}: {error}"})
        finally:
            self._send(None)

    def _show(self, step: Step) -> None:
        if self._gone.is_set():
            raise _GoneError
        if step.number < self._job.steps:  # the last one's images come with the end
            self._tell({"step": step.number, "steps": self._job.steps, "images": encode(step.images)})

    def _tell(self, event: Event) -> None:
        if self._gone.is_set():
            raise _GoneError
        self._send(event)

    def _send(self, event: Event | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: Event | None) -> None:
        if self._events.full():
            # Who reads slowly misses steps: neither does the model wait for them, nor do images pile up.
            self._events.get_nowait()
        self._events.put_nowait(event)


def encode(images: Tensor | Sequence[Tensor]) -> list[str]:
    """Images [n, C, H, W] in [0, 1] as base64 of PNG files."""
    found = []
    for image in images:
        file = io.BytesIO()
        pictures.to_pil(image).save(file, "PNG")
        found.append(base64.b64encode(file.getvalue()).decode("ascii"))
    return found
