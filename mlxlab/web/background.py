"""Runs an HTTP endpoint in its own thread, beside a notebook or a command."""

from __future__ import annotations

import atexit
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from mlxlab.errors import ServerError
from mlxlab.web.connections import BACKLOG, QUEUE, affordable, bounded_protocol
from mlxlab.web.guard import Bounds
from mlxlab.web.log import AccessLog, Complaints, ServerLog

__all__ = ["BackgroundServer", "wait_for_signal"]

_START_S = 10.0
#: Seconds that open answers have to end when the server stops.
_GRACE_S = 1
#: Seconds that a stop waits for an application that blocks its event loop.
_STOP_S = 10.0
#: Seconds between two looks whether a wait is over.
_LOOK_S = 0.5
_MAX_HEADER = 64 * 2**10


class BackgroundServer:
    """Serves an ASGI application from a daemon thread.

    The interpreter's exit stops the server too. After a stop it may be started again.

    Args:
        app: the ASGI application.
        host: loopback, unless other machines should reach it.
        port: 0 for any free port.
        bounds: limits on connections and on the time that each may take.

    Attributes:
        log: one line per response and per complaint of the HTTP server since the last
            start, latest last. Nothing is printed.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str = "127.0.0.1",
        port: int = 0,
        bounds: Bounds | None = None,
    ) -> None:
        self.log = ServerLog()
        self._app = AccessLog(app, self.log)
        self._host, self._port = host, port
        self._bounds = bounds or Bounds()
        self._run: _Run | None = None

    @property
    def url(self) -> str:
        """Base URL for clients.

        Raises:
            ServerError: the server was never started.
        """
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def port(self) -> int:
        """The current port, or the last one.

        Raises:
            ServerError: the server was never started.
        """
        if self._run is None:
            raise ServerError(f"{self._host}: the endpoint does not run; start it")
        return self._run.port

    @property
    def is_alive(self) -> bool:
        """Whether the server accepts requests."""
        run = self._run
        return run is not None and run.is_alive

    def start(self) -> Self:
        """Start the server and return when it accepts requests. Safe to repeat.

        Raises:
            ServerError: the address is in use or not on this machine, or the
                application
                fails to start.
        """
        if self.is_alive:
            return self
        self.stop()  # cleans up after a run that ended by itself
        self.log.clear()
        bound = _bound(self._host, self._port)
        self._run = run = _Run.of(self._app, bound, self._bounds, self.log)
        run.complaints.attach()
        atexit.register(self.stop)
        run.thread.start()
        if not run.has_started():
            self.stop()
            raise ServerError(f"{self.url}: did not start: {_reason(self.log)}")
        run.bound.listen(QUEUE)  # asyncio has set the queue to the backlog
        return self

    def stop(self) -> None:
        """Accept no more requests, end the open ones and the thread. Safe to repeat."""
        run = self._run
        if run is None:
            return
        run.complaints.stop()
        run.server.should_exit = True
        run.thread.join(_STOP_S)
        run.bound.close()
        run.complaints.detach()
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def wait_for_signal(
    ready: Callable[[], None] = lambda: None,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Wait for SIGINT or SIGTERM; from the main thread only.

    Args:
        ready: called once a signal would end the wait.
        is_over: asked now and then; ends the wait too.
    """
    # The code that a signal interrupts may hold the lock of an Event.
    arrived: SimpleQueue[int] = SimpleQueue()
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda kind, _: arrived.put(kind)) for kind in kinds]
    try:
        ready()
        while not is_over():
            with suppress(Empty):
                arrived.get(timeout=_LOOK_S)
                break
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


@dataclass(frozen=True, slots=True)
class _Run:
    """The socket, server and thread of one start."""

    port: int
    bound: socket.socket
    server: uvicorn.Server
    thread: Thread
    complaints: Complaints

    @classmethod
    def of(
        cls, app: ASGIApp, bound: socket.socket, bounds: Bounds, log: ServerLog
    ) -> _Run:
        config = uvicorn.Config(
            app,
            loop="asyncio",  # the bounds rely on how asyncio accepts
            http=bounded_protocol(affordable(bounds)),
            ws="none",
            backlog=BACKLOG,
            h11_max_incomplete_event_size=_MAX_HEADER,
            log_config=None,
            access_log=False,
            server_header=False,  # an upstream sends its own header
            date_header=False,
            timeout_keep_alive=ceil(bounds.idle_s),
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = uvicorn.Server(config)
        thread = Thread(target=_serve, args=(server, bound), daemon=True)
        port = bound.getsockname()[1]
        return cls(port, bound, server, thread, Complaints(log, thread))

    @property
    def is_alive(self) -> bool:
        return self.server.started and self.thread.is_alive()

    def has_started(self) -> bool:
        """Whether requests are accepted; waits until that is decided."""
        end = time.monotonic() + _START_S
        while not self.server.started:
            if not self.thread.is_alive() or time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True


def _serve(server: uvicorn.Server, bound: socket.socket) -> None:
    # Raised by a server that cannot start; has_started() reports it.
    with suppress(SystemExit):
        server.run([bound])


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only with a named protocol does asyncio send at once, not 40 ms later.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()
    except (OSError, OverflowError) as error:
        bound.close()
        raise ServerError(f"{host}:{port}: {error}; give a free port") from None
    return bound


def _reason(log: ServerLog) -> str:
    """Return the last line of the first complaint: for a traceback, the exception."""
    return log[0].rpartition("\n")[2] if log else f"no answer within {_START_S:.0f} s"
