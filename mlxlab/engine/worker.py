"""The one thread that evaluates arrays.

MLX streams are thread-local: a lazy array built on one thread cannot be evaluated on
another, and Jupyter runs callbacks where it likes. So a model lives on one worker
thread; everybody else submits work and gets plain Python values back.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

__all__ = ["Worker"]

P = ParamSpec("P")
T = TypeVar("T")
_END = object()


class Worker:
    """Runs submitted calls in order on one daemon thread.

    Use as a context manager, or call :meth:`close`. The thread is a daemon, so that a
    long prefill never holds up the interpreter's exit.
    """

    def __init__(self, name: str = "mlxlab-worker") -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether work submitted now would be run."""
        return self._thread.is_alive()

    def submit(
        self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Queue a call; its result must hold no unevaluated array.

        Raises:
            RuntimeError: the worker has been closed.
        """
        if not self.is_alive:
            raise RuntimeError(f"{self._thread.name} is closed")
        future: Future[T] = Future()
        self._calls.put((future, lambda: call(*args, **kwargs)))
        return future

    def call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call on the worker and wait for its result."""
        return self.submit(call, *args, **kwargs).result()

    def stream(
        self, call: Callable[P, Iterable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Iterator[T]:
        """Iterate on the worker; items arrive here as they are made.

        Closing the returned generator closes the source at its next item.
        """
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stopped = threading.Event()

        def drain() -> None:
            source = iter(call(*args, **kwargs))
            try:
                for item in source:
                    items.put(item)
                    if stopped.is_set():
                        break
            finally:
                getattr(source, "close", lambda: None)()
                items.put(_END)

        done = self.submit(drain)
        try:
            while (item := items.get()) is not _END:
                yield item
        finally:
            stopped.set()
        done.result()

    def close(self) -> None:
        """Finish what is queued, then end the thread. Safe to call twice."""
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (entry := self._calls.get()) is not None:
            future, call = entry
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            # Else the last call's arrays live until the next one comes.
            del entry, future, call
