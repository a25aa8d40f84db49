"""Seconds between an answer and its agent's next request, as they were seen."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeAlias

__all__ = ["Gaps", "Kind"]

Kind: TypeAlias = tuple[str, ...]
"""How an answer ended, from the most general word to the most special one."""

#: Latest gaps that are remembered of a kind, and kinds.
_KEPT = 500
_KINDS = 1000
#: Fewer gaps say nothing, and a more general kind is asked.
_FEW = 8
_JOIN = " "


class _Latest:
    """The latest gaps, also in order of length."""

    def __init__(self) -> None:
        self.latest: deque[float] = deque()
        self.ordered: list[float] = []

    def add(self, seconds: float) -> None:
        self.latest.append(seconds)
        insort(self.ordered, seconds)
        if len(self.latest) > _KEPT:
            oldest = self.latest.popleft()
            del self.ordered[bisect_right(self.ordered, oldest) - 1]


class Gaps:
    """Remembers gaps by kind, and says how long one that goes on will still take."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, _Latest] = {}

    def add(self, kind: Kind, seconds: float) -> None:
        """Remember a gap, for its kind and for all more general ones."""
        for length in range(len(kind) + 1):
            own = self._kinds.get(kind[:length])
            if own is None:
                if len(self._kinds) == _KINDS:
                    continue
                own = self._kinds[kind[:length]] = _Latest()
            own.add(seconds)

    def rest(self, kind: Kind, elapsed: float) -> float:
        """Return the expected rest of a gap in seconds: its residual life.

        This is the median rest of the remembered gaps that were longer. Where all were
        shorter, a gap is expected to double.

        Args:
            kind: how the answer ended.
            elapsed: seconds that the gap has lasted.
        """
        for length in range(len(kind), -1, -1):
            own = self._kinds.get(kind[:length])
            if own is None:
                continue
            first = bisect_right(own.ordered, elapsed)
            longer = len(own.ordered) - first
            if longer >= _FEW:
                return own.ordered[first + longer // 2] - elapsed
        return elapsed

    def within(self, kind: Kind, share: float) -> float:
        """Return the seconds in which this share of the gaps is over; 0 if unknown."""
        for length in range(len(kind), -1, -1):
            own = self._kinds.get(kind[:length])
            if own is not None and len(own.ordered) >= _FEW:
                return own.ordered[int(share * (len(own.ordered) - 1))]
        return 0.0

    def to_dict(self) -> dict[str, list[float]]:
        """Return the gaps of each kind as JSON values, the latest last."""
        return {
            _JOIN.join(kind): [round(seconds, 3) for seconds in own.latest]
            for kind, own in self._kinds.items()
        }

    @classmethod
    def of(cls, values: Mapping[str, Sequence[float]]) -> Gaps:
        """Remember the gaps of :meth:`to_dict`."""
        gaps = cls()
        for text, seconds in values.items():
            own = gaps._kinds[tuple(text.split(_JOIN)) if text else ()] = _Latest()
            for value in seconds:
                own.add(float(value))
        return gaps
