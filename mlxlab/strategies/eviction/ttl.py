"""Time to live, by the tool that an agent waits for."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from mlxlab.strategies.eviction.base import Entry, register
from mlxlab.strategies.eviction.gaps import Gaps, Kind
from mlxlab.strategies.eviction.ordered import Ranked, Visits
from mlxlab.strategies.use import Use

__all__ = ["TimeToLive"]

#: Agents whose latest answer is remembered.
_AGENTS = 4096
#: Share of the learned gaps that a time to live covers.
_COVERED = 0.9


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
        self._gaps = Gaps()
        self._now = -math.inf
        self._until = -math.inf
        self._agents: OrderedDict[str, Use] = OrderedDict()

    def begin(self, use: Use) -> None:
        super().begin(use)
        self._until = -math.inf
        if use.t is None or not use.agent:
            return
        self._now = max(self._now, use.t)
        if use.side:
            return
        before = self._agents.pop(use.agent, None)
        if before is not None and before.last is not None and not before.running:
            self._gaps.add(_kind(before), max(use.t - before.last, 0.0))
        self._agents[use.agent] = use
        if len(self._agents) > _AGENTS:
            self._agents.popitem(last=False)
        if use.running:
            self._until = math.inf
        elif use.tools or use.stop == "tool_use":
            self._until = (use.last or 0.0) + self._gaps.within(_kind(use), _COVERED)

    def _visit(self, own: Visits) -> None:
        if own.agent == self.use.agent and not self.use.side:
            own.score = self._until
        else:  # what others wait for stays
            own.score = max(own.score, self._until)

    def _rank(self, entry: Entry) -> float:
        return self._visits[entry].score >= self._now

    def learned(self) -> dict[str, Any]:
        return self._gaps.to_dict()

    def recall(self, learned: dict[str, Any]) -> None:
        self._gaps = Gaps()
        self._gaps.load(learned)


def _kind(use: Use) -> Kind:
    return (use.stop or "unknown", *use.tools[-1:])
