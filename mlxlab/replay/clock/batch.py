"""Answers that decode together, several steps at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import ceil, sqrt
from typing import Generic, TypeVar

from mlxlab.replay.cost_model import CostModel

__all__ = ["DecodingBatch"]

T = TypeVar("T")


class DecodingBatch(Generic[T]):
    """Counts steps instead of tokens: an answer ends at a step known when it joins.

    Args:
        costs: give the seconds of a step.

    Attributes:
        fresh: answers that have no token yet.
    """

    def __init__(self, costs: CostModel) -> None:
        self._step, self._row, self._token = costs.decoding
        self._steps = 0
        self._context = 0  # of all rows
        self._order = 0
        self._ends: list[tuple[int, int, int, T]] = []
        self.fresh: list[T] = []

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, own: T, context: int, tokens: int) -> None:
        """Let an answer of this many tokens join, behind its prompt."""
        self._order += 1
        end = self._steps + tokens
        # The context at the end shows what the row held whenever it leaves.
        heapq.heappush(self._ends, (end, self._order, context + tokens, own))
        self._context += context
        self.fresh.append(own)

    @property
    def left(self) -> int:
        """Steps until the first answer ends."""
        return self._ends[0][0] - self._steps

    def seconds(self, steps: int) -> float:
        """Return the seconds of the next steps, as long as no answer ends or joins."""
        rows = len(self._ends)
        first = self._step + rows * self._row + self._context * self._token
        return steps * first + self._token * rows * (steps * (steps - 1) / 2)

    def steps_for(self, seconds: float) -> int:
        """Return the fewest steps, at least one, that take this long or longer."""
        growth = self._token * len(self._ends)
        linear = self.seconds(1) - growth / 2
        if linear <= 0:
            return self.left
        if growth:
            root = sqrt(linear * linear + 2 * growth * max(seconds, 0.0))
            found = (root - linear) / growth
        else:
            found = seconds / linear
        steps = max(ceil(found), 1)
        while steps > 1 and self.seconds(steps - 1) >= seconds:  # rounding
            steps -= 1
        while self.seconds(steps) < seconds and steps < self.left:
            steps += 1
        return steps

    def advance(self, steps: int) -> Iterator[T]:
        """Take steps, at most :attr:`left`, and yield the answers that end."""
        self._steps += steps
        self._context += steps * len(self._ends)
        self.fresh.clear()
        while self._ends and self._ends[0][0] == self._steps:
            _, _, context, own = heapq.heappop(self._ends)
            self._context -= context
            yield own
