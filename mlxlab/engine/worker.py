"""The one thread that evaluates arrays.

MLX streams are thread-local: a lazy array built on one thread cannot be evaluated on
another, and Jupyter runs callbacks on any thread. So a model lives on one worker
thread. Other threads submit calls and receive plain Python values.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx

__all__ = ["Worker"]

P = ParamSpec("P")
T = TypeVar("T")
_END = object()
#: Seconds that the interpreter's exit and Ctrl-C wait for a worker to end.
_EXIT_S = 1.0


class Worker:
    """Runs submitted calls in order on one daemon thread.

    Use it as a context manager, or call :meth:`close`. The thread is a daemon, so that
    a long prefill never delays the interpreter's exit.
    """

    def __init__(self, name: str = "mlxlab-worker") -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._end, _EXIT_S)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is KeyboardInterrupt:
            self._end(_EXIT_S)  # a call may take minutes
        else:
            self.close()

    @property
    def is_alive(self) -> bool:
        """Whether a call submitted now would run."""
        return self._thread.is_alive() and not self._closed

    def submit(
        self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Queue a call; its result must hold no unevaluated array.

        Raises:
            RuntimeError: the worker has been closed.
        """
        future: Future[T] = Future()
        # A call queued after the end marker would never run.
        with self._lock:
            if not self.is_alive:
                raise RuntimeError(f"{self._thread.name} is closed")
            self._calls.put((future, lambda: call(*args, **kwargs)))
        return future

    def call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call on the worker and wait for its result."""
        return self.submit(call, *args, **kwargs).result()

    def stream(
        self, call: Callable[P, Iterable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Generator[T, None, None]:
        """Iterate on the worker; items arrive here as they are produced.

        Closing the returned generator closes the source at its next item.
        """
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stopped = threading.Event()
        done = self.feed(items.put, stopped, partial(call, *args, **kwargs))
        done.add_done_callback(lambda _: items.put(_END))
        try:
            while (item := items.get()) is not _END:
                yield item
        finally:
            stopped.set()
        done.result()

    def feed(
        self,
        put: Callable[[T], object],
        stopped: threading.Event,
        call: Callable[[], Iterable[T]],
    ) -> Future[None]:
        """Iterate on the worker and pass on items as they are produced.

        Args:
            put: called on the worker with each item.
            stopped: once set, the source is closed at its next item.
            call: returns the source.

        Raises:
            RuntimeError: the worker has been closed.
        """

        def drain() -> None:
            source = iter(call())
            try:
                for item in source:
                    put(item)
                    if stopped.is_set():
                        break
            finally:
                getattr(source, "close", lambda: None)()

        return self.submit(drain)

    def close(self) -> None:
        """Finish the queued calls, then end the thread. Safe to call twice."""
        atexit.unregister(self._end)
        self._end()

    def _end(self, timeout: float | None = None) -> None:
        with self._lock:
            self._closed = True
            self._calls.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._run_calls()
        finally:
            # Without this, streams end beside the interpreter, which sometimes aborts.
            mx.clear_streams()

    def _run_calls(self) -> None:
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
            # Otherwise the last call's arrays live until the next call.
            del entry, future, call
