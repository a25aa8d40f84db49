"""The queue in front of the worker: event loop on one side, MLX on the other.

Knows nothing of requests and tokens; it moves items of iterators that run on the
worker to coroutines that wait for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from mlxlab.engine import Worker

__all__ = ["QueueFullError", "Scheduler"]

T = TypeVar("T")


class QueueFullError(Exception):
    """As many requests wait as may."""


class Scheduler:
    """Runs one iterator at a time, in the order in which they came.

    Args:
        worker: the thread that they run on.
        limit: requests that may wait behind the running one.
        heartbeat_s: seconds of silence after which a stream yields None.
    """

    def __init__(self, worker: Worker, *, limit: int, heartbeat_s: float = 0.5) -> None:
        self.worker = worker
        self.limit = limit
        self.heartbeat_s = heartbeat_s
        self.unfinished = 0

    @property
    def waiting(self) -> int:
        """Requests behind the running one."""
        return max(0, self.unfinished - 1)

    def check(self) -> None:
        """Whether one more request may come.

        Raises:
            QueueFullError: as many requests wait as may.
        """
        if self.unfinished > self.limit:
            raise QueueFullError

    async def stream(self, make: Callable[[], Iterable[T]]) -> AsyncIterator[T | None]:
        """Items of ``make()`` as the worker makes them; None while there are none.

        However this ends, the iterator stops at its next item, or never starts.

        Raises:
            QueueFullError: as many requests wait as may.
        """
        self.check()
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[tuple[T] | None] = asyncio.Queue()
        stopped = threading.Event()

        def put(item: tuple[T] | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(items.put_nowait, item)

        self.unfinished += 1
        try:
            done = self.worker.feed(lambda item: put((item,)), stopped, make)
        except RuntimeError:
            self.unfinished -= 1
            raise
        done.add_done_callback(lambda _: self._finish(loop, put))
        try:
            while (item := await self._next(items)) is not None:
                yield item[0] if item else None
            done.result()
        finally:
            stopped.set()
            done.cancel()

    async def _next(
        self, items: asyncio.Queue[tuple[T] | None]
    ) -> tuple[T] | tuple[()] | None:
        """The next item in a tuple; an empty one after a silence; None at the end."""
        try:
            return await asyncio.wait_for(items.get(), self.heartbeat_s)
        except TimeoutError:
            return ()

    def _finish(self, loop: asyncio.AbstractEventLoop, put: Callable[..., Any]) -> None:
        """Called by whoever ends the future: the worker, or a cancelling coroutine."""

        def finished() -> None:
            self.unfinished -= 1

        if not loop.is_closed():
            loop.call_soon_threadsafe(finished)
        put(None)
