"""The queue between the event loop and the MLX worker.

It lets answers run on the worker and passes their items to waiting coroutines.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias, TypeVar

from anyio import CancelScope

from mlxlab.engine import Request, Runner, Worker

__all__ = ["QueueFullError", "Scheduler"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_Put: TypeAlias = Callable[[T], object]
_Box: TypeAlias = tuple[T] | tuple[()] | None
"""An item, a silence, or the end."""


class QueueFullError(Exception):
    """The queue of waiting requests is full."""


class Scheduler:
    """Hands requests to a runner, whose steps alternate with the worker's other calls.

    Args:
        worker: the thread that runs the steps.
        runner: takes the requests; only touched on that thread.
        limit: most requests that wait behind the running ones.
        heartbeat_s: seconds of silence after which a stream yields None.
    """

    def __init__(
        self, worker: Worker, runner: Runner, *, limit: int, heartbeat_s: float = 0.5
    ) -> None:
        self.worker = worker
        self.runner = runner
        self.limit = limit
        self.heartbeat_s = heartbeat_s
        self.unfinished = 0
        self._running: list[_Answer] = []

    @property
    def waiting(self) -> int:
        """Number of requests behind the running ones."""
        return max(0, self.unfinished - self.runner.most)

    @property
    def is_full(self) -> bool:
        """Whether a further request waits for an answer to end."""
        return self.unfinished >= self.runner.most

    def check(self) -> None:
        """Check that one more request may wait.

        Raises:
            QueueFullError: the queue is full.
        """
        if self.unfinished >= self.limit + self.runner.most:
            raise QueueFullError

    async def stream(
        self, make: Callable[[_Put[T]], Request]
    ) -> AsyncIterator[T | None]:
        """Yield what a request puts as the worker makes it; None during a silence.

        When the stream ends for any reason, so has the request: closing it waits until
        the computed tokens are cached.

        Args:
            make: called on the worker with the function that takes items.

        Raises:
            QueueFullError: the queue is full.
        """
        self.check()
        answer = _Answer(make, self._count_ended)
        self.unfinished += 1
        try:
            self.worker.submit(self._begin, answer)
        except RuntimeError:
            self.unfinished -= 1
            raise
        try:
            while (box := await self._next(answer.items)) is not None:
                yield box[0] if box else None
            if answer.error is not None:
                raise answer.error
        finally:
            await answer.cancel()

    async def _next(self, items: asyncio.Queue[_Box[T]]) -> _Box[T]:
        """Return the next item in a tuple, () after a silence, or None at the end."""
        try:
            return await asyncio.wait_for(items.get(), self.heartbeat_s)
        except TimeoutError:
            return ()

    def _count_ended(self) -> None:
        self.unfinished -= 1

    def _begin(self, answer: _Answer) -> None:
        """Give a request to the runner; on the worker."""
        request = answer.make()
        if request is None:
            return
        self.runner.add(request)
        self._running.append(answer)
        if len(self._running) == 1:
            self._step()

    def _step(self) -> None:
        """Run a step, and queue the next one behind what waits for the worker."""
        while self._running:
            try:
                self._cancel()
                self.runner.step()
            except Exception as error:
                log.error("the runner failed", exc_info=error)
                self.runner.close(error)
            self._running = [own for own in self._running if not own.has_ended]
            if self._running:
                try:
                    self.worker.submit(self._step)
                    return
                except RuntimeError:
                    continue  # the worker finishes what it has begun before it ends

    def _cancel(self) -> None:
        for answer in self._running:
            if answer.is_cancelled and answer.request is not None:
                self.runner.cancel(answer.request)


class _Answer:
    """One stream: its request on the worker, and its items in the event loop.

    Args:
        make: makes the request.
        ended: called at the end, in the event loop.

    Attributes:
        items: items in tuples; None at the end.
        error: what ended it early.
        request: None before it was made.
        is_cancelled: whether nobody waits for it any more.
        has_ended: whether the request has ended.
    """

    def __init__(
        self,
        make: Callable[[_Put[Any]], Request],
        ended: Callable[[], None],
    ) -> None:
        self.items: asyncio.Queue[_Box[Any]] = asyncio.Queue()
        self.error: BaseException | None = None
        self.request: Request | None = None
        self.is_cancelled = False
        self.has_ended = False
        self._make = make
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()

    def make(self) -> Request | None:
        """Make the request, if somebody still waits for it; on the worker."""
        if self.is_cancelled:
            self._end(None)
            return None
        try:
            self.request = request = self._make(self._put)
        except Exception as error:
            self._end(error)
            return None
        done = request.done

        def end() -> None:
            error = request.error
            try:
                done()
            except Exception as failure:
                error = error or failure
            self._end(error)

        request.done = end
        return request

    async def cancel(self) -> None:
        """Let the request end if it has not, and wait for that; in the event loop."""
        self.is_cancelled = True
        with CancelScope(shield=True):
            await self._left.wait()

    def _put(self, item: Any) -> None:
        self._call(lambda: self.items.put_nowait((item,)))

    def _end(self, error: BaseException | None) -> None:
        def ended() -> None:
            self.error = error
            self._left.set()
            self._ended()
            self.items.put_nowait(None)

        self.has_ended = True
        self._call(ended)

    def _call(self, call: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)
