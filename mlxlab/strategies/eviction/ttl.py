"""Time to live, by the tool that an agent waits for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxlab.strategies.eviction.agents import Agents
from mlxlab.strategies.eviction.base import Entry, register
from mlxlab.strategies.eviction.gaps import Gaps, Kind
from mlxlab.strategies.eviction.ordered import Ranked, Visits
from mlxlab.strategies.use import Use

__all__ = ["TimeToLive"]

#: Share of the learned gaps that a time to live covers.
_COVERED = 0.9


@dataclass(frozen=True, slots=True)
class _Answer:
    use: Use

    @property
    def kind(self) -> Kind:
        return (self.use.stop or "unknown", *self.use.tools[-1:])


@register
class TimeToLive(Ranked):
    """Pins a path for a while where its answer calls a tool.

    The time to live is learned from the gaps after the same tool, and covers nine in
    ten of them. Continuum also weighs the seconds of a recomputation and of the queue,
    which a policy does not know. A path whose answer called no tool is not pinned, and
    neither is one whose time is over: these go first. In the tree an entry is pinned
    as long as any path through it. The clock is the latest arrival.
    """

    name = "ttl"
    summary = "pins a path while its tool is expected to run"
    literature = "Continuum (arXiv 2511.02230)"
    rank = 70
    is_timed = True

    def __init__(self) -> None:
        super().__init__()
        self._until = -math.inf
        self._agents: Agents[_Answer] = Agents()

    def begin(self, use: Use) -> None:
        super().begin(use)
        self._until = -math.inf
        answer = _Answer(use)
        self._agents.take(use)
        self._agents.put(answer)
        if use.last is None or not use.agent or use.side:
            return
        if use.running:
            self._until = math.inf
        elif use.tools or use.stop == "tool_use":
            ttl = self._agents.gaps.within(answer.kind, _COVERED)
            self._until = use.last + ttl

    def _visit(self, own: Visits) -> None:
        if own.agent == self.use.agent and not self.use.side:
            own.score = self._until
        else:  # what others wait for stays
            own.score = max(own.score, self._until)

    def _rank(self, entry: Entry) -> float:
        return self._visits[entry].score >= self._agents.now

    def learned(self) -> dict[str, list[float]]:
        return self._agents.gaps.to_dict()

    def recall(self, learned: Mapping[str, Sequence[float]]) -> None:
        self._agents.gaps = Gaps.of(learned)
