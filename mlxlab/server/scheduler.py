"""The queue between the event loop and the MLX worker.

It passes items of iterators that run on the worker to waiting coroutines.
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
    """The queue of waiting requests is full."""


class Scheduler:
    """Runs one iterator at a time, in order of arrival.

    Args:
        worker: the thread that runs the iterators.
        limit: most requests that wait behind the running one.
        heartbeat_s: seconds of silence after which a stream yields None.
    """

    def __init__(self, worker: Worker, *, limit: int, heartbeat_s: float = 0.5) -> None:
        self.worker = worker
        self.limit = limit
        self.heartbeat_s = heartbeat_s
        self.unfinished = 0

    @property
    def waiting(self) -> int:
        """Number of requests behind the running one."""
        return max(0, self.unfinished - 1)

    def check(self) -> None:
        """Check that one more request may wait.

        Raises:
            QueueFullError: the queue is full.
        """
        if self.unfinished > self.limit:
            raise QueueFullError

    async def stream(self, make: Callable[[], Iterable[T]]) -> AsyncIterator[T | None]:
        """Yield items of ``make()`` as the worker makes them; None during a silence.

        When the stream ends for any reason, the iterator stops at its next item or
        never
        starts.

        Raises:
            QueueFullError: the queue is full.
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
        """Return the next item in a tuple, () after a silence, or None at the end."""
        try:
            return await asyncio.wait_for(items.get(), self.heartbeat_s)
        except TimeoutError:
            return ()

    def _finish(self, loop: asyncio.AbstractEventLoop, put: Callable[..., Any]) -> None:
        """Called when the future ends: by the worker, or by a cancelling coroutine."""

        def finished() -> None:
            self.unfinished -= 1

        if not loop.is_closed():
            loop.call_soon_threadsafe(finished)
        put(None)
