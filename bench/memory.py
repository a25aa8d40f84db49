"""The memory of a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import psutil

__all__ = ["Memory"]

_LOOK_S = 0.2


class Memory:
    """Samples the resident memory of a process and of all that it started.

    Attributes:
        peak: the most bytes seen.
        samples: how often it looked.
    """

    def __init__(self) -> None:
        self.peak = 0
        self.samples = 0

    @contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Look at a process several times a second as long as the block runs."""
        ended = Event()
        thread = Thread(target=self._watch, args=(pid, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, pid: int, ended: Event) -> None:
        while True:
            self.peak = max(self.peak, _resident(pid))
            self.samples += 1
            if ended.wait(_LOOK_S):
                return


def _resident(pid: int) -> int:
    """Return the bytes of a process tree; 0 once it has gone."""
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in tree:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
