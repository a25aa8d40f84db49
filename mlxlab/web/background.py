"""An HTTP endpoint in a thread of its own, beside a notebook or a command.

Knows nothing of what the application answers.
"""

from __future__ import annotations

import atexit
import logging
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxlab.errors import ServerError

__all__ = ["BackgroundServer", "wait_for_signal"]

_START_S = 10.0
#: Seconds that open answers have to end when the server stops.
_GRACE_S = 1
#: Seconds after which a stop no longer waits for an application that blocks its loop.
_STOP_S = 10.0
_MAX_HEADER = 64 * 2**10
_LOG_LINES = 1000
_LOGGED_PATH = 200


class BackgroundServer:
    """Serves an ASGI application from a daemon thread.

    The interpreter's end stops it too. After a stop it may be started again.

    Args:
        app: answers.
        host: loopback unless others are to reach it.
        port: 0 for any free one.

    Attributes:
        log: a line for each response and for each complaint of the HTTP server, the
            latest at the end, since the last start. Nothing is printed.
    """

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> None:
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self._app = _AccessLog(app, self.log)
        self._host, self._port = host, port
        self._run: _Run | None = None

    @property
    def url(self) -> str:
        """Base URL for clients.

        Raises:
            ServerError: it was never started.
        """
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def port(self) -> int:
        """The port it is, or was last, reached on.

        Raises:
            ServerError: it was never started.
        """
        if self._run is None:
            raise ServerError(f"{self._host}: the endpoint does not run; start it")
        return self._run.port

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken."""
        run = self._run
        return run is not None and run.is_alive

    def start(self) -> Self:
        """Return when requests are taken; nothing happens if they already are.

        Raises:
            ServerError: the address is in use or not of this machine, or the
                application refuses to start.
        """
        if self.is_alive:
            return self
        self.stop()  # what is left of a run that ended by itself
        self.log.clear()
        self._run = run = _Run.of(self._app, _bound(self._host, self._port), self.log)
        logging.getLogger("uvicorn.error").addHandler(run.handler)
        atexit.register(self.stop)
        run.thread.start()
        if not run.has_started():
            self.stop()
            raise ServerError(f"{self.url}: did not start: {_reason(self.log)}")
        return self

    def stop(self) -> None:
        """Take no more requests, end the open ones and the thread. Safe to repeat."""
        run = self._run
        if run is None:
            return
        run.server.should_exit = True
        run.thread.join(_STOP_S)
        run.bound.close()
        logging.getLogger("uvicorn.error").removeHandler(run.handler)
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


def wait_for_signal(ready: Callable[[], None] = lambda: None) -> None:
    """Wait for SIGINT or SIGTERM; from the main thread only.

    Args:
        ready: called once a signal would end the wait.
    """
    # Not an Event: its lock may be held by the very code that a signal interrupts.
    arrived: SimpleQueue[int] = SimpleQueue()
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda kind, _: arrived.put(kind)) for kind in kinds]
    try:
        ready()
        arrived.get()
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


@dataclass(frozen=True, slots=True)
class _Run:
    """What one start makes and one stop ends."""

    port: int
    bound: socket.socket
    server: uvicorn.Server
    thread: Thread
    handler: logging.Handler

    @classmethod
    def of(cls, app: ASGIApp, bound: socket.socket, log: deque[str]) -> _Run:
        config = uvicorn.Config(
            app,
            http="h11",  # the one that caps headers
            ws="none",
            h11_max_incomplete_event_size=_MAX_HEADER,
            log_config=None,
            access_log=False,
            server_header=False,  # an upstream sends its own
            date_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = uvicorn.Server(config)
        thread = Thread(target=_serve, args=(server, bound), daemon=True)
        port = bound.getsockname()[1]
        return cls(port, bound, server, thread, _Complaints(log, thread))

    @property
    def is_alive(self) -> bool:
        return self.server.started and self.thread.is_alive()

    def has_started(self) -> bool:
        """Whether requests are taken, as soon as that is settled."""
        end = time.monotonic() + _START_S
        while not self.server.started:
            if not self.thread.is_alive() or time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True


class _Complaints(logging.Handler):
    """Keeps what the HTTP server of one thread logs; all of them share a logger."""

    def __init__(self, lines: deque[str], thread: Thread) -> None:
        super().__init__()
        self.lines = lines
        self.thread = thread

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread.ident:
            self.lines.append(self.format(record).rstrip())


class _AccessLog:
    """ASGI middleware: a line for each response, without query and headers."""

    def __init__(self, app: ASGIApp, lines: deque[str]) -> None:
        self.app = app
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["raw_path"][:_LOGGED_PATH].decode("latin-1")
                # A target that is no path may hold a user's password.
                path = path if path.startswith("/") else "-"
                self.lines.append(f"{scope['method']} {path} {message['status']}")
            await send(message)

        await self.app(scope, receive, send_logged)


def _serve(server: uvicorn.Server, bound: socket.socket) -> None:
    # Raised by a server that cannot start, which has_started() tells.
    with suppress(SystemExit):
        server.run([bound])


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()
    except (OSError, OverflowError) as error:
        bound.close()
        raise ServerError(f"{host}:{port}: {error}; give a free port") from None
    return bound


def _reason(log: deque[str]) -> str:
    """The last line of the first complaint: of a traceback, the exception."""
    return log[0].rpartition("\n")[2] if log else f"no answer within {_START_S:.0f} s"
