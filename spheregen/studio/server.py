"""The studio's server: the page, and the model behind it.

It is meant for one person and their browser. It answers only to names that it was told (a page elsewhere could rebind
its own name to this address), refuses posts from pages of other origins, and bounds what one request can ask for.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pydantic
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spheregen.errors import SpheregenError, suggest
from spheregen.images import read_image
from spheregen.model import SphereModel
from spheregen.studio.about import about
from spheregen.studio.requests import REQUESTS, Place
from spheregen.studio.worker import BusyError, Ticket, Worker, encode

PAGE = Path(__file__).parent / "page"
LOCAL = ("localhost", "127.0.0.1", "[::1]")
MEGAPIXELS = 32  # of a file: decoded, some 100 MB, and a few times as much while it is scaled
MEGABYTES = 48
UPLOADS = 2  # at once
PATIENCE = 60  # seconds for an upload
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(model: SphereModel, run: str | Path, *, options: Iterable[str] = (), hosts: Iterable[str] = ()) -> Any:
    """The studio of a model, as an ASGI application.

    run: the model's folder as command lines shall name it; options: what else they shall say (--device cpu). hosts:
    the names and addresses, besides localhost's, under which it may be reached.
    """
    place = Place(str(run), tuple(options))
    facts = about(model, place.run, MEGAPIXELS, MEGABYTES)
    spec = model.shape.image
    # Two images of the model's size as base64, and some words.
    longest = 1_000_000 + 4 * spec.size**2 * spec.channels
    worker = Worker()
    reading = anyio.CapacityLimiter(1)  # one image is decoded at a time
    uploads = anyio.Semaphore(UPLOADS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        worker.close()

    async def model_facts(_: Request) -> Response:
        return JSONResponse(facts)

    async def image(request: Request) -> Response:
        """A file of any kind -> PNG of the model's size."""
        name = request.query_params.get("name", "image")[:200]
        async with uploads:
            data = await read_body(request, MEGABYTES * 1_000_000)
            read = partial(read_image, io.BytesIO(data), spec.size, spec.channels, name=name, megapixels=MEGAPIXELS)
            del data
            pixels = await anyio.to_thread.run_sync(read, limiter=reading)
        return JSONResponse({"png": encode(pixels.unsqueeze(0).float() / 255)[0], "file": name})

    async def make(request: Request) -> Response:
        """A request of `requests` -> its events, one JSON object a line."""
        name = request.path_params["name"]
        if name not in REQUESTS:
            raise HTTPException(404, f"{name}: no such request; {suggest(name, REQUESTS)}")
        wanted = REQUESTS[name].model_validate_json(await read_body(request, longest))
        job = await anyio.to_thread.run_sync(wanted.prepare, model, place, limiter=reading)
        return EventStream(worker.submit(job))

    return Starlette(
        routes=[
            Route("/api/model", model_facts, methods=["GET"]),
            Route("/api/image", image, methods=["POST"]),
            Route("/api/{name}", make, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, *hosts], www_redirect=False),
            Middleware(Guard),
        ],
        exception_handlers={
            HTTPException: _refusal,
            SpheregenError: _refusal,
            pydantic.ValidationError: _refusal,
            ClientDisconnect: _gone,
        },  # type: ignore[dict-item]
        lifespan=lifespan,
    )


class EventStream(StreamingResponse):
    """A job's events as lines of JSON. When the reader goes, so does the job."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        super().__init__(self._lines(), media_type="application/x-ndjson")

    async def _lines(self) -> AsyncIterator[str]:
        async for event in self.ticket.events():
            yield json.dumps(event) + "\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.ticket.cancel()


class Guard:
    """Refuses posts from pages of other origins, and tells browsers to load nothing from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != headers.get("host"):
            refusal = JSONResponse({"error": f"origin {origin}: only the studio's own page may ask"}, 403)
            await refusal(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body. Raises HTTPException where it is longer than `limit` bytes or takes too long."""
    told = request.headers.get("content-length", "")
    data = bytearray()
    try:
        with anyio.fail_after(PATIENCE):
            if not (told.isdecimal() and int(told) > limit):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > limit:
                        break
                else:
                    return bytes(data)
    except TimeoutError:
        raise HTTPException(408, f"the upload took longer than {PATIENCE} seconds") from None
    raise HTTPException(413, f"too large: expected at most {limit / 1e6:.0f} MB")


async def _refusal(_: Request, error: Exception) -> Response:
    """One line that says what was wrong."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "request"
        given = "" if first["type"] in ("missing", "json_invalid") else f", got {first['input']!r}"[:80]
        return JSONResponse({"error": f"{where}: {first['msg']}{given}"}, 422)
    return JSONResponse({"error": " ".join(str(error).split())}, 503 if isinstance(error, BusyError) else 400)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)
