"""Writes what an application is asked and answers into a trace, as it passes.

Knows nothing of models, of what the traffic means, or of who answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import anyio
from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxlab.errors import RequestError, TraceError
from mlxlab.traces.schema import Json, decode
from mlxlab.traces.trace import Exchange, Response
from mlxlab.traces.writer import TraceWriter
from mlxlab.web.guard import replayed
from mlxlab.web.json_shape import check_shape
from mlxlab.web.sse import (
    Accumulator,
    CompletionAccumulator,
    MessageAccumulator,
)

__all__ = ["Tee", "api_path", "json_object"]

log = logging.getLogger(__name__)

_PREFIX = "/anthropic"


class Tee:
    """ASGI middleware: requests below ``/v1`` and their answers go into a trace.

    A request is written before the application sees it, and its answer when it has
    ended, complete or not. What cannot be written is answered all the same.
    Expects the whole body in one message, as :class:`mlxlab.web.guard.Guard` sends it.

    An application that answers from a script says so in ``scope["state"]["script"]``;
    one that sees what a model generates puts into it, under their names in lower case,
    a :class:`~mlxlab.traces.schema.Generated`, what it is set to as a
    :class:`~mlxlab.traces.schema.Configuration`, the
    :class:`~mlxlab.traces.schema.Order` of its plans and commits, what eviction was
    :class:`~mlxlab.traces.schema.Told` of it, and the
    :class:`~mlxlab.traces.schema.Timing` of its parts.

    Args:
        app: answers.
        writer: see below.
        listener: called with each exchange that is in the trace, once it has ended; its
            answer is None if none had begun. It runs on the event loop, so it must not
            take long.

    Attributes:
        writer: where requests that arrive from now on are written; None lets them
            pass. May be changed at any time.
        failure: why the latest recording has stopped by itself, and where; else empty.
    """

    def __init__(
        self,
        app: ASGIApp,
        writer: TraceWriter | None = None,
        listener: Callable[[Exchange], object] | None = None,
    ) -> None:
        self.app = app
        self.writer = writer
        self._listener = listener
        self.failure = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = self.writer
        if scope["type"] != "http" or writer is None or not _is_recorded(scope):
            await self.app(scope, receive, send)
            return
        asked = await receive()
        if asked["type"] == "http.disconnect":
            return
        exchange = _Exchange(writer, scope)
        try:
            id = await run_sync(exchange.record, asked["body"])
        except TraceError as error:
            self._note(writer, "a request", error)
            await self.app(scope, replayed(asked["body"], receive), send)
            return
        await self._answer(exchange, id, asked, receive, send)

    def _note(self, writer: TraceWriter, part: str, error: TraceError) -> None:
        """Note what is not in the trace, and whether the recording goes on."""
        if writer.is_open:
            log.error("%s is not in the trace: %s", part, error)
        elif self.writer is writer:
            self.writer = None
            self.failure = str(error)
            log.error("the recording has stopped: %s", error)

    async def _answer(
        self, exchange: _Exchange, id: int, asked: Message, receive: Receive, send: Send
    ) -> None:
        unread = [asked]

        async def conclude() -> None:
            # Also when the client has gone, which cancels what is not shielded.
            with anyio.CancelScope(shield=True):
                try:
                    await run_sync(exchange.conclude, id)
                except TraceError as error:
                    self._note(exchange.writer, "an answer", error)

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        async def send_heard(message: Message) -> None:
            exchange.hear(message)
            if exchange.is_complete:
                # Who has got a whole answer may rely on it being in the trace.
                await conclude()
            await send(message)

        try:
            await self.app(exchange.scope, receive_again, send_heard)
        finally:
            await conclude()
            if self._listener is not None:
                self._listener(exchange.whole(id))


class _Exchange:
    """One request and its answer on their way through."""

    def __init__(self, writer: TraceWriter, scope: Scope) -> None:
        self.writer = writer
        self.scope = scope
        self.t = time.time()
        self.clock = time.monotonic()
        self.status: int | None = None
        self.first_byte_s: float | None = None
        self.message = _Heard("", {})
        self.is_complete = False
        self.is_concluded = False
        self.body: dict[str, Json] | None = None
        self.response: Response | None = None
        scope.setdefault("state", {})

    def record(self, body: bytes) -> int:
        """Write the request."""
        self.body = json_object(body)
        return self.writer.request(
            t=self.t,
            method=self.scope["method"],
            path=api_path(self.scope),
            headers=dict(Headers(scope=self.scope)),
            body=self.body,
        )

    def whole(self, id: int) -> Exchange:
        """Return request and answer, as they passed."""
        headers = dict(Headers(scope=self.scope))
        method, path = self.scope["method"], api_path(self.scope)
        return Exchange(id, self.t, method, path, headers, self.body, self.response)

    def hear(self, message: Message) -> None:
        """Take in a piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = dict(message.get("headers", ()))
            self.message = _Heard(api_path(self.scope), headers)
        elif message["type"] == "http.response.body":
            if message.get("body"):
                if self.first_byte_s is None:
                    self.first_byte_s = time.monotonic() - self.clock
                self.message.feed(message["body"])
            self.is_complete = not message.get("more_body", False)

    def conclude(self, id: int) -> None:
        """Write the answer once, if one has begun.

        Raises:
            TraceError: it cannot be written.
        """
        if self.status is None or self.is_concluded:
            return
        self.is_concluded = True
        elapsed = time.monotonic() - self.clock
        self.response = Response(
            t=self.t + elapsed,
            status=self.status,
            first_byte_s=elapsed if self.first_byte_s is None else self.first_byte_s,
            message=self.message.result(),
            script=self.scope["state"].get("script", False),
            generated=self.scope["state"].get("generated"),
            configuration=self.scope["state"].get("configuration"),
            order=self.scope["state"].get("order"),
            told=self.scope["state"].get("told"),
            timing=self.scope["state"].get("timing"),
        )
        self.writer.response(id, self.response)


class _Heard:
    """The message in the bytes of an answer, streamed or not."""

    def __init__(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        streamed = b"event-stream" in headers.get(b"content-type", b"")
        self._stream = _accumulator(path) if streamed else None
        self._data = bytearray()

    def feed(self, chunk: bytes) -> None:
        if self._stream is not None:
            self._stream.feed(chunk)
        else:
            self._data += chunk

    def result(self) -> dict[str, Json] | None:
        if self._stream is not None:
            return self._stream.message
        return json_object(bytes(self._data))


def _accumulator(path: str) -> Accumulator:
    plain = path.partition("?")[0]
    is_chat = plain.endswith("/chat/completions")
    return CompletionAccumulator() if is_chat else MessageAccumulator()


def api_path(scope: Scope) -> str:
    """The path as it was sent, with its query, less ``/anthropic`` in front."""
    # Not from a URL, which would be built from the Host that the client claims.
    path = scope["raw_path"].decode("latin-1")
    path = path.removeprefix(_PREFIX) if path.startswith(f"{_PREFIX}/") else path
    query = scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def json_object(data: bytes) -> dict[str, Json] | None:
    """The JSON object that ``data`` is; None if it is none, or beyond the limits."""
    try:
        check_shape(data.decode(errors="replace"))
        value = decode(data)
    except (RequestError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_recorded(scope: Scope) -> bool:
    return api_path(scope).startswith("/v1/")
