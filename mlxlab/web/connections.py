"""Bounds the number and the duration of an endpoint's connections.

uvicorn bounds neither the time that headers take nor the number of silent connections.
Each accepted connection costs a file descriptor.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlxlab.web.guard import Bounds

__all__ = ["BACKLOG", "QUEUE", "affordable", "bounded_protocol"]

#: Connections that asyncio accepts before it reads from any of them.
BACKLOG = 128
#: Connections that the kernel queues meanwhile. A client beyond them waits a second.
QUEUE = 1024
#: File descriptors that the rest of the process may open while the server runs.
_OTHER_FILES = 64
_FEWEST = 8

_ANSWERED = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)


class _Stage(IntEnum):
    """The stage of a connection's request; earlier stages are dropped first."""

    HEADERS = 0  # headers are incomplete
    UNREAD = 1  # answered before the body was complete
    STALLED = 2  # the client does not read
    IDLE = 3  # between two requests
    BODY = 4  # body is incomplete
    WHOLE = 5  # never dropped


class _BoundedProtocol(H11Protocol):
    """One connection, closed when it is slow or when a new one needs its place."""

    bounds: ClassVar[Bounds]
    #: Connections in HEADERS without a credential, oldest first: thousands may come.
    strangers: ClassVar[dict[_BoundedProtocol, None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stage: _Stage | None = None
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # Called by uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._settle()
        while len(self.connections) > self.bounds.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leave()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._settle()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP, unless its answer has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        super().send_400_response(msg)
        if self.cycle is not None:  # keep the application from answering as well
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _should_upgrade(self) -> bool:
        """Ignore upgrade requests; uvicorn would log advice to install a package."""
        return False

    # Our own methods

    @property
    def _is_known(self) -> bool:
        return self.scope is not None and bool(self.scope.get("credential"))

    @property
    def _priority(self) -> tuple[bool, _Stage, float]:
        """Return a rank that rises with the work lost if the connection is dropped."""
        return self._is_known, self._current(), self._since

    def _current(self) -> _Stage:
        if self.conn.their_state is h11.IDLE:
            fresh = self.cycle is None or bool(self.conn.trailing_data[0])
            return _Stage.HEADERS if fresh else _Stage.IDLE
        if self.flow.write_paused:
            return _Stage.STALLED
        if self.conn.their_state is h11.SEND_BODY:
            answered = self.conn.our_state in _ANSWERED
            return _Stage.UNREAD if answered else _Stage.BODY
        return _Stage.WHOLE

    def _settle(self) -> None:
        """Start the timer of a new stage; bytes within a stage do not restart it."""
        stage = self._current()
        if stage is self._stage or self.transport.is_closing():
            return
        self._leave()
        self._stage, self._since = stage, self.loop.time()
        if stage is _Stage.HEADERS and not self._is_known:
            self.strangers[self] = None
        seconds = {
            _Stage.HEADERS: self.bounds.header_s,
            _Stage.UNREAD: self.bounds.unread_s,
            _Stage.IDLE: self.bounds.idle_s,
        }.get(stage)
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self._stage is _Stage.HEADERS and self.conn.trailing_data[0]:
            seconds = self.bounds.header_s
            self.logger.warning("closed: headers incomplete after %g s", seconds)
        self.transport.abort()

    def _leave(self) -> None:
        """End the timer and the records of the current stage."""
        self.strangers.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> None:
        dropped = self._least()
        dropped._leave()
        self.connections.discard(dropped)
        dropped.transport.abort()
        most = self.bounds.connections
        self.logger.warning("closed: more than %d connections", most)

    def _least(self) -> _BoundedProtocol:
        """Return the connection to drop: this new one if all others are answered."""
        oldest = next(iter(self.strangers), self)
        if oldest is not self:
            return oldest
        others = [
            other
            for other in self.connections
            if isinstance(other, _BoundedProtocol)
            and other is not self
            and other._current() is not _Stage.WHOLE
        ]
        return min(others, key=lambda other: other._priority, default=self)


def bounded_protocol(bounds: Bounds) -> type[H11Protocol]:
    """Return uvicorn's protocol, bounded, for the connections of one server."""
    own = {"bounds": bounds, "strangers": {}}
    return type("BoundedProtocol", (_BoundedProtocol,), own)


def affordable(bounds: Bounds) -> Bounds:
    """Return the bounds with no more connections than file descriptors allow.

    Raises the process's soft limit if it is too low, but only as far as needed.
    """
    others = len(list(Path("/dev/fd").iterdir())) + _OTHER_FILES + BACKLOG
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = others + bounds.connections
    if _is_below(soft, needed):
        raised = hard if _is_below(hard, needed) else needed
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if not _is_below(soft, needed):
        return bounds
    return replace(bounds, connections=max(soft - others, _FEWEST))


def _is_below(limit: int, needed: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < needed
