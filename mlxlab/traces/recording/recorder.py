"""An endpoint that a client points its base URL at, and that writes a trace.

Knows nothing of models, of what the traffic means, or of how it is answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp

from mlxlab.errors import ServerError, TraceError
from mlxlab.traces.recording.script import read_script
from mlxlab.traces.recording.tee import Tee, api_path, json_object
from mlxlab.traces.recording.upstream import (
    Call,
    EndpointUpstream,
    ScriptUpstream,
    Upstream,
)
from mlxlab.traces.schema import Json
from mlxlab.traces.trace import Exchange
from mlxlab.traces.writer import TraceWriter
from mlxlab.web.background import BackgroundServer, wait_for_signal
from mlxlab.web.errors import ApiError, error_response, new_request_id
from mlxlab.web.guard import Guard

__all__ = ["Recording", "create_app", "record", "recording"]

Listener: TypeAlias = Callable[[Exchange], object]

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorder that runs: where clients reach it, and what it writes to."""

    url: str
    writer: TraceWriter


def create_app(
    answerer: Upstream,
    writer: TraceWriter,
    host: str = "127.0.0.1",
    listener: Listener | None = None,
) -> ASGIApp:
    """The recorder as an ASGI application.

    It writes each request before it is answered, and each answer when it has
    ended, complete or not. Requests that a web page may have sent are refused.

    Args:
        answerer: answers.
        writer: writes.
        host: how clients may call it, besides loopback.
        listener: see :class:`~mlxlab.traces.recording.tee.Tee`.
    """
    return Guard(Tee(_answering(answerer), writer, listener), [host])


@contextmanager
def recording(
    out: str | Path,
    *,
    script: str | Path | None = None,
    upstream: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    notes: Mapping[str, Json] | None = None,
    listener: Listener | None = None,
) -> Iterator[Recording]:
    """Record into ``out`` while the block runs.

    Args:
        out: the trace to create.
        script: a script of answers, or
        upstream: the endpoint that answers; exactly one of the two.
        host: loopback unless others are to record through it.
        port: 0 for any free one.
        notes: provenance for the trace's first line.
        listener: see :class:`~mlxlab.traces.recording.tee.Tee`.

    Raises:
        TraceError, ScriptError, ServerError: a bad argument; then nothing is written.
    """
    answerer = _answerer(script, upstream)
    with TraceWriter(out, notes) as writer:
        app = create_app(answerer, writer, host, listener)
        server = BackgroundServer(app, host, port)
        try:
            server.start()
        except ServerError:
            writer.discard()
            raise
        with server:
            yield Recording(server.url, writer)


def record(
    out: str | Path,
    *,
    script: str | Path | None = None,
    upstream: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[str], None] = lambda url: None,
    listener: Listener | None = None,
) -> None:
    """Record until SIGINT or SIGTERM; from the main thread only.

    Args:
        out: the trace to create.
        script: a script of answers, or
        upstream: the endpoint that answers; exactly one of the two.
        host: loopback unless others are to record through it.
        port: 0 for any free one.
        ready: called with the base URL once clients may connect.
        listener: see :class:`~mlxlab.traces.recording.tee.Tee`.

    Raises:
        TraceError, ScriptError, ServerError: as :func:`recording`.
    """
    with recording(
        out, script=script, upstream=upstream, host=host, port=port, listener=listener
    ) as to:
        wait_for_signal(lambda: ready(to.url))


def _answering(answerer: Upstream) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await answerer.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.api_route("/{path:path}", methods=_METHODS)
    async def answer(request: Request) -> StreamingResponse:
        answer = await answerer.answer(await _call(request))
        request.state.script = answer.script
        return StreamingResponse(answer.chunks, answer.status, dict(answer.headers))

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> JSONResponse:
        return error_response(error, new_request_id())

    return app


async def _call(request: Request) -> Call:
    raw = await request.body()
    headers = dict(request.headers)
    path = api_path(request.scope)
    return Call(request.method, path, headers, raw, json_object(raw))


def _answerer(script: str | Path | None, upstream: str | None) -> Upstream:
    if script is not None and upstream is None:
        return ScriptUpstream(read_script(script))
    if upstream is not None and script is None:
        return EndpointUpstream(upstream)
    raise TraceError("record: give either a script or an upstream")
