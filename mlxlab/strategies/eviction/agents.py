"""The latest answer of each agent, and what the times between answers teach."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from mlxlab.strategies.eviction.gaps import Gaps, Kind
from mlxlab.strategies.use import Use

__all__ = ["Agents", "Answer"]

#: Agents whose latest answer is remembered.
_MOST = 4096


class Answer(Protocol):
    """A request and how its answer ended."""

    @property
    def use(self) -> Use: ...
    @property
    def kind(self) -> Kind: ...


A = TypeVar("A", bound=Answer)


class Agents(Generic[A]):
    """Remembers the latest answers; side requests are none.

    Attributes:
        now: the latest arrival, in seconds.
        gaps: from an answer to its agent's next request, by kind of answer.
    """

    def __init__(self) -> None:
        self.now = -math.inf
        self.gaps = Gaps()
        self._latest: OrderedDict[str, A] = OrderedDict()

    def take(self, use: Use) -> tuple[A | None, float | None]:
        """Note an arrival; return the agent's latest answer, and the gap in seconds.

        The answer is forgotten and its gap is learned. There is no gap behind an answer
        that went on.
        """
        if use.t is None or not use.agent:
            return None, None
        self.now = max(self.now, use.t)
        before = None if use.side else self._latest.pop(use.agent, None)
        if before is None or before.use.running or before.use.last is None:
            return before, None
        gap = max(use.t - before.use.last, 0.0)
        self.gaps.add(before.kind, gap)
        return before, gap

    def put(self, answer: A) -> None:
        """Remember an answer, if it is known whose and when."""
        use = answer.use
        if use.t is None or not use.agent or use.side:
            return
        self._latest[use.agent] = answer
        if len(self._latest) > _MOST:
            self._latest.popitem(last=False)
