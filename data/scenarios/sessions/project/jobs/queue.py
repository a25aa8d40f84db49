"""Keeps jobs until somebody runs them."""

import heapq
import itertools
from dataclasses import dataclass, field


@dataclass
class Job:
    """Something to do; a higher priority goes first."""

    name: str
    action: object
    priority: int = 0
    attempts: int = field(default=0, compare=False)


class JobQueue:
    """Jobs in order of priority, then of arrival."""

    def __init__(self, max_attempts=3):
        self.max_attempts = max_attempts
        self.failed = []
        self._heap = []
        self._arrival = itertools.count()

    def __len__(self):
        return len(self._heap)

    def add(self, job):
        """Put a job into the queue."""
        heapq.heappush(self._heap, (job.priority, next(self._arrival), job))

    def run_next(self):
        """Run the next job; one that raises is tried again later.

        Returns what the action returned, None after a failure.
        """
        if not self._heap:
            raise IndexError("the queue is empty")
        _, _, job = heapq.heappop(self._heap)
        job.attempts += 1
        try:
            return job.action()
        except Exception as error:
            self._retry(job, error)
            return None

    def _retry(self, job, error):
        if job.attempts >= self.max_attempts:
            self.failed.append((job, error))
        else:
            self.add(job)
