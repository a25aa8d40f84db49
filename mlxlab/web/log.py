"""The log of an HTTP endpoint, bounded in lines, characters and repetitions."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import overload

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AccessLog", "Complaints", "ServerLog"]

_LINES = 1000
_CHARACTERS = 48 * 2**10
_LINE_START, _LINE_END = 1000, 3000
_KINDS = 200
#: Lines of one kind in one window; further lines are only counted.
_REPEATS = 10
_WINDOW_S = 60.0
_PATH = 200


@dataclass(slots=True)
class _Entry:
    text: str
    more: int = 0

    def __str__(self) -> str:
        return f"{self.text} (… {self.more:,} more like it)" if self.more else self.text


@dataclass(slots=True)
class _Window:
    """The latest lines of one kind."""

    started: float
    entry: _Entry
    lines: int = 0


class ServerLog(Sequence[str]):
    """The latest lines, the newest last.

    Ten lines of one kind are kept per minute; the last one counts the rest.

    Args:
        clock: returns monotonic seconds.

    Attributes:
        maxlen: most lines.
    """

    maxlen = _LINES

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: deque[_Entry] = deque()
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._characters = 0

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return list(map(str, list(self._entries)[index]))
        return str(self._entries[index])

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Remove all lines."""
        self._entries.clear()
        self._windows.clear()
        self._characters = 0

    def add(self, text: str, kind: str) -> None:
        """Append a line, or only count it if its kind is at its limit."""
        if self.is_repeated(kind):
            return
        entry = _Entry(_shortened(text))
        window = self._window(kind) or _Window(self._clock(), entry)
        window.entry = entry
        window.lines += 1
        self._windows[kind] = window
        if len(self._windows) > _KINDS:
            self._windows.popitem(last=False)
        self._append(entry)

    def is_repeated(self, kind: str) -> bool:
        """Return whether a kind is at its limit; if so, count one more line."""
        window = self._window(kind)
        if window is None or window.lines < _REPEATS:
            return False
        window.entry.more += 1
        return True

    def _window(self, kind: str) -> _Window | None:
        window = self._windows.get(kind)
        if window is None or self._clock() - window.started > _WINDOW_S:
            return None
        return window

    def _append(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._characters += len(entry.text)
        while len(self._entries) > _LINES or self._characters > _CHARACTERS:
            self._characters -= len(self._entries.popleft().text)


class Complaints(logging.Handler):
    """Collects the log records of one thread's HTTP server and event loop.

    All servers of a process share two loggers. Repeated records of this thread reach no
    other handler, nor do those of a server that stops, which breaks off open answers.
    Records of its event loop never do, because they would be printed into the notebook.

    Args:
        lines: the log to append to.
        thread: the server's thread.
    """

    def __init__(self, lines: ServerLog, thread: Thread) -> None:
        super().__init__()
        self.lines = lines
        self.thread = thread
        self._is_stopping = False
        self._server = logging.getLogger("uvicorn.error")
        self._loop = logging.getLogger("asyncio")

    def attach(self) -> None:
        """Start to collect."""
        self._server.addHandler(self)
        self._server.addFilter(self._admit)
        self._loop.addFilter(self._divert)

    def stop(self) -> None:
        """Keep further records from other handlers."""
        self._is_stopping = True

    def detach(self) -> None:
        """Stop collecting. Safe to repeat."""
        self._server.removeHandler(self)
        self._server.removeFilter(self._admit)
        self._loop.removeFilter(self._divert)

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record of this thread; ignore other threads."""
        if self._is_ours(record):
            self.lines.add(self.format(record).rstrip(), _kind(record))

    def _admit(self, record: logging.LogRecord) -> bool:
        if self._is_stopping:
            return self._divert(record)
        return not (self._is_ours(record) and self.lines.is_repeated(_kind(record)))

    def _divert(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return not self._is_ours(record)

    def _is_ours(self, record: logging.LogRecord) -> bool:
        return record.thread == self.thread.ident


class AccessLog:
    """ASGI middleware that logs one line per response, without query and headers."""

    def __init__(self, app: ASGIApp, lines: ServerLog) -> None:
        self.app = app
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add(scope, message["status"])
            await send(message)

        await self.app(scope, receive, send_logged)

    def _add(self, scope: Scope, status: int) -> None:
        path = scope["raw_path"][:_PATH].decode("latin-1")
        # A target that is not a path may hold a password.
        path = path if path.startswith("/") else "-"
        line = f"{scope['method']} {path} {status}"
        # Refused clients choose method and path freely, so they share one kind per
        # status.
        self.lines.add(line, line if status < 400 else str(status))


def _kind(record: logging.LogRecord) -> str:
    """Return the template of a message, without the addresses at its end."""
    return str(record.msg).partition("\n")[0]


def _shortened(text: str) -> str:
    """Return the start and the end; a traceback ends with its exception."""
    if len(text) <= _LINE_START + _LINE_END:
        return text
    return f"{text[:_LINE_START]}\n…\n{text[-_LINE_END:]}"
