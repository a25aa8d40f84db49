"""An endpoint that a client points its base URL at, and that writes a trace.

Knows nothing of models, of what the traffic means, or of how it is answered.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from mlxlab.errors import TraceError
from mlxlab.traces.answerers import (
    Answer,
    Answerer,
    Call,
    ScriptAnswerer,
    UpstreamAnswerer,
    error_answer,
    is_loopback,
)
from mlxlab.traces.schema import Json, decode
from mlxlab.traces.script import read_script
from mlxlab.traces.sse import MessageAccumulator
from mlxlab.traces.trace import Response
from mlxlab.traces.writer import TraceWriter

__all__ = ["Recording", "create_app", "record", "recording", "serve"]

log = logging.getLogger(__name__)

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_MAX_BODY = 32 * 2**20
_STARTUP_S = 10.0
_SHUTDOWN_S = 2
_PREFIX = "/anthropic"


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorder that runs: where clients reach it, and what it writes to."""

    url: str
    writer: TraceWriter


def create_app(answerer: Answerer, writer: TraceWriter) -> FastAPI:
    """The recorder as an ASGI application.

    It writes each request before it is answered, and each answer when it has
    ended, complete or not. Requests that a web page may have sent are refused.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await answerer.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.api_route("/{path:path}", methods=_METHODS)
    async def exchange(request: Request) -> StreamingResponse:
        return await _Exchange(answerer, writer).answer(request)

    return app


def serve(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> _Server:
    """Start ``app`` in a thread of its own and return when it takes requests.

    Args:
        app: the recorder.
        host: loopback unless others are to record through it.
        port: 0 for any free one.

    Raises:
        TraceError: the address is in use or not of this machine.
    """
    server = _Server(app, host, port)
    server.start()
    return server


@contextmanager
def recording(
    out: str | Path,
    *,
    script: str | Path | None = None,
    upstream: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    notes: Mapping[str, Json] | None = None,
) -> Iterator[Recording]:
    """Record into ``out`` while the block runs.

    Args:
        out: the trace to create.
        script: a script of answers, or
        upstream: the endpoint that answers; exactly one of the two.
        host: loopback unless others are to record through it.
        port: 0 for any free one.
        notes: provenance for the trace's first line.

    Raises:
        TraceError, ScriptError: a bad argument; then nothing is written.
    """
    answerer = _answerer(script, upstream)
    with TraceWriter(out, notes) as writer:
        try:
            server = serve(create_app(answerer, writer), host, port)
        except TraceError:
            writer.path.unlink()
            raise
        try:
            yield Recording(server.url, writer)
        finally:
            server.stop()


def record(
    out: str | Path,
    *,
    script: str | Path | None = None,
    upstream: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Record until SIGINT or SIGTERM; from the main thread only.

    Args:
        out: the trace to create.
        script: a script of answers, or
        upstream: the endpoint that answers; exactly one of the two.
        host: loopback unless others are to record through it.
        port: 0 for any free one.
        ready: called with the base URL once clients may connect.

    Raises:
        TraceError, ScriptError: as :func:`recording`.
    """
    done = threading.Event()
    with (
        recording(out, script=script, upstream=upstream, host=host, port=port) as to,
        _signals(done.set),
    ):
        ready(to.url)
        done.wait()


class _Exchange:
    """One request and its answer on their way through."""

    def __init__(self, answerer: Answerer, writer: TraceWriter) -> None:
        self.answerer = answerer
        self.writer = writer
        self.t = time.time()
        self.clock = time.monotonic()

    async def answer(self, request: Request) -> StreamingResponse:
        refusal = _refusal(request)
        if refusal is not None:
            return _sent(refusal, refusal.chunks)
        raw = await _read(request)
        if raw is None:
            refusal = error_answer(413, f"a body over {_MAX_BODY} bytes; send less")
            return _sent(refusal, refusal.chunks)
        call = _call(request, raw)
        try:
            id = await run_sync(self._record, call)
        except TraceError as error:
            log.error("%s", error)
            refusal = error_answer(500, str(error))
            return _sent(refusal, refusal.chunks)
        answer = await self.answerer.answer(call)
        return _sent(answer, self._tee(id, answer))

    def _record(self, call: Call) -> int:
        return self.writer.request(
            t=self.t,
            method=call.method,
            path=call.path,
            headers=call.headers,
            body=call.body,
        )

    async def _tee(self, id: int, answer: Answer) -> AsyncIterator[bytes]:
        first_byte_s = None
        message = _Heard(answer.headers)
        try:
            async for chunk in answer.chunks:
                if first_byte_s is None:
                    first_byte_s = time.monotonic() - self.clock
                message.feed(chunk)
                yield chunk
        finally:
            # Also when the client has gone, which cancels what is not shielded.
            with anyio.CancelScope(shield=True):
                await self._conclude(id, answer, message, first_byte_s)

    async def _conclude(
        self, id: int, answer: Answer, message: _Heard, first_byte_s: float | None
    ) -> None:
        elapsed = time.monotonic() - self.clock
        response = Response(
            t=self.t + elapsed,
            status=answer.status,
            first_byte_s=elapsed if first_byte_s is None else first_byte_s,
            message=message.result(),
            script=answer.script,
        )
        try:
            await run_sync(self.writer.response, id, response)
        except TraceError as error:
            log.error("an answer is not in the trace: %s", error)


class _Heard:
    """The message in the bytes of an answer, streamed or not."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        kind = headers.get("content-type", "")
        self._stream = MessageAccumulator() if "event-stream" in kind else None
        self._data = bytearray()

    def feed(self, chunk: bytes) -> None:
        if self._stream is not None:
            self._stream.feed(chunk)
        else:
            self._data += chunk

    def result(self) -> dict[str, Json] | None:
        if self._stream is not None:
            return self._stream.message
        try:
            value = decode(bytes(self._data))
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


class _Server:
    """A uvicorn server on a socket of its own, in a thread."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self._socket = _bound(host, port)
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,  # an upstream sends its own
            date_header=False,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), daemon=True
        )

    def start(self) -> None:
        self._thread.start()
        end = time.monotonic() + _STARTUP_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.stop()
                raise TraceError(f"{self.url}: the recorder did not start; see the log")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop taking requests, end the open ones and wait for the thread."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def _answerer(script: str | Path | None, upstream: str | None) -> Answerer:
    if script is not None and upstream is None:
        return ScriptAnswerer(read_script(script))
    if upstream is not None and script is None:
        return UpstreamAnswerer(upstream)
    raise TraceError("record: give either a script or an upstream")


def _refusal(request: Request) -> Answer | None:
    """A refusal for what a browser may have been tricked into sending.

    A page whose name resolves to this machine has a foreign Host; any other page
    has a foreign Origin.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    bound = (request.scope.get("server") or ("",))[0]
    if is_loopback(bound) and not is_loopback(_host_name(host)):
        return error_answer(403, "a foreign Host; use 127.0.0.1 or localhost")
    if origin is not None:
        return error_answer(403, "requests of web pages are not recorded")
    return None


def _host_name(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name.strip("[]") if name and port.isdigit() else host.strip("[]")


async def _read(request: Request) -> bytes | None:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY:
            return None
    return bytes(data)


def _call(request: Request, raw: bytes) -> Call:
    # Not request.url, which is built from the Host that the client claims.
    path = request.scope["raw_path"].decode("latin-1")
    path = path.removeprefix(_PREFIX) if path.startswith(f"{_PREFIX}/") else path
    query = request.scope["query_string"].decode("latin-1")
    path = f"{path}?{query}" if query else path
    try:
        body = decode(raw)
    except (ValueError, RecursionError):
        body = None
    body = body if isinstance(body, dict) else None
    return Call(request.method, path, dict(request.headers), raw, body)


def _sent(answer: Answer, chunks: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(chunks, answer.status, dict(answer.headers))


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise TraceError(f"{host}:{port}: {error}; give a free port") from None
    return bound


@contextmanager
def _signals(handle: Callable[[], None]) -> Iterator[None]:
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda *_: handle()) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
