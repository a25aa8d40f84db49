"""The thread that writes to disk, behind the answers."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["DiskWriter"]

log = logging.getLogger(__name__)

_Job: TypeAlias = tuple[Callable[[], None], int]


class DiskWriter:
    """Runs jobs in order on one thread, and counts the bytes that wait.

    Args:
        limit: most bytes that may wait.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0
        self._lock = threading.Lock()
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._thread = threading.Thread(
            target=self._run, name="mlxlab-disk", daemon=True
        )
        self._thread.start()

    def takes(self, size: int) -> bool:
        """Whether this many bytes more may wait; one job always may."""
        return self.waiting == 0 or self.waiting + size <= self.limit

    def submit(self, job: Callable[[], None], size: int = 0) -> None:
        """Queue a job that keeps this many bytes in memory."""
        with self._lock:
            self.waiting += size
        self._jobs.put((job, size))

    def flush(self) -> None:
        """Wait until all jobs so far are done."""
        if self._thread.is_alive():
            self._jobs.join()

    def close(self) -> None:
        """Finish all jobs, then end the thread. Safe to call twice."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, size = entry
            try:
                job()
            except Exception as error:
                log.error("disk: a job failed", exc_info=error)
            finally:
                with self._lock:
                    self.waiting -= size
                del entry, job
                self._jobs.task_done()
        self._jobs.task_done()
