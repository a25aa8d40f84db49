"""Answers that decode together, several steps at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import ceil, inf, sqrt
from typing import Generic, TypeVar

from mlxlab.replay.decoding_costs import Decoding

__all__ = ["DecodingBatch"]

T = TypeVar("T")

#: Share of a step that a computed number of steps may be too high by.
_ROUNDING = 1e-9


class DecodingBatch(Generic[T]):
    """Counts steps instead of tokens: an answer ends at a step known when it joins.

    Args:
        costs: give the seconds of a step.

    Attributes:
        fresh: answers that have no token yet.
    """

    def __init__(self, costs: Decoding) -> None:
        self._costs = costs
        self._steps = 0
        self._order = 0
        # When each ends, and the tokens in front of it less the steps so far.
        self._ends: list[tuple[int, int, int, T]] = []
        self.fresh: list[T] = []

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def longest(self) -> int:
        """Tokens in front of the longest answer."""
        return max(ends[2] for ends in self._ends) + self._steps

    def add(self, own: T, context: int, tokens: int) -> float:
        """Let an answer of this many tokens join, behind its prompt.

        Returns:
            Seconds of joining others.
        """
        self._order += 1
        ends = self._steps + tokens, self._order, context - self._steps, own
        heapq.heappush(self._ends, ends)
        self.fresh.append(own)
        rows = len(self._ends)
        return self._costs.join_s(rows, self.longest) if rows > 1 else 0.0

    @property
    def left(self) -> int:
        """Steps until the first answer ends."""
        return self._ends[0][0] - self._steps

    def seconds(self, steps: int) -> float:
        """Return the seconds of the next steps, as long as no answer ends or joins."""
        first, growth = self._pace()
        return steps * first + growth * (steps * (steps - 1) / 2)

    def steps_for(self, seconds: float) -> int:
        """Return the fewest steps, at least one, that take this long or longer.

        Where the first answer ends before, return a number of steps beyond that.
        """
        first, growth = self._pace()
        if seconds <= first:
            return 1
        if growth:
            linear = first - growth / 2
            root = sqrt(linear * linear + 2 * growth * seconds)
            steps = (root - linear) / growth
        else:
            steps = seconds / first if first else inf
        return ceil(min(steps - _ROUNDING, self.left + 1))

    def _pace(self) -> tuple[float, float]:
        """Return the seconds of the next step, and by how much each is longer."""
        rows = len(self._ends)
        return self._costs.step_s(rows, self.longest), self._costs.growth_s(rows)

    def advance(self, steps: int) -> Iterator[tuple[T, float]]:
        """Take steps, at most :attr:`left`.

        Yields:
            Each answer that ends, and the seconds in which it leaves the others.
        """
        self._steps += steps
        self.fresh.clear()
        while self._ends and self._ends[0][0] == self._steps:
            rows = len(self._ends)
            leave_s = self._costs.leave_s(rows, self.longest) if rows > 1 else 0.0
            yield heapq.heappop(self._ends)[3], leave_s
