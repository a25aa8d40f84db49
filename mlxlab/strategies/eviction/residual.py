"""The path whose next use is expected last goes first, the newest one included."""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from mlxlab.strategies.eviction.base import Entry, Eviction, MayGo, register
from mlxlab.strategies.eviction.gaps import Gaps, Kind
from mlxlab.strategies.use import Use

__all__ = ["ResidualLife"]

#: Agents whose latest answer is remembered.
_AGENTS = 4096
#: Weight of the latest gap in an agent's pace, which is a mean of logarithms.
_WEIGHT = 0.2
#: Limits between paces, in seconds between an answer and the next request.
_PACES = tuple(map(math.log1p, (5.0, 8.0, 12.0, 20.0, 40.0, 100.0)))


@dataclass(slots=True, eq=False)
class _Path:
    """What one agent used last.

    Attributes:
        number: counts uses, in order.
        asked, ended: seconds; None if they are not known, or if the agent is not.
        pace: mean logarithm of the agent's gaps; None before the first.
        is_dead: whether nothing will ask for it again.
        entries: its entries, the deepest first.
    """

    number: int
    asked: float | None = None
    ended: float | None = None
    running: bool = False
    pace: float | None = None
    kind: Kind = ()
    is_dead: bool = False
    entries: dict[Entry, None] = field(default_factory=dict)


@register
class ResidualLife(Eviction):
    """Evicts from the path whose next use is expected last.

    The next use is expected from how the last answer ended (its stop reason and tool),
    from the pace of its agent, and from the time since: as the median rest of the gaps
    that were like this and longer, see :class:`Gaps`. Such residual lives need no
    knowledge of the future; Belady's MIN would take the true next use.

    Nothing asks again for a path that its agent has left, for that of a sub-agent whose
    turn has ended, or for a side request: these go before all others, and no
    conversation goes for them. Paths of requests that run, and pinned ones, go last.

    The clock is the latest arrival. Where no times or agents are known, the least
    recently used goes first.
    """

    name = "residual"
    summary = "the path whose next use is expected last first, the newest included"
    literature = "residual life of renewal processes, in place of Belady's next use"
    rank = 20
    is_timed = True

    def __init__(self) -> None:
        super().__init__()
        self._gaps = Gaps()
        self._gaps.load(_priors())
        self._now = -math.inf
        self._number = 0
        self._agents: OrderedDict[str, _Path] = OrderedDict()
        self._path = _Path(0)
        self._paths: dict[Entry, _Path] = {}
        self._held: set[_Path] = set()  # those with entries
        self._kept: set[Entry] = set()  # before this commit
        self._keeping: set[Entry] = set()  # after it
        self._order: list[_Path] | None = None

    def begin(self, use: Use) -> None:
        super().begin(use)
        self._kept, self._keeping = self._keeping, set()
        self._order = None
        self._number += 1
        asked = use.t if use.agent else None
        self._path = path = _Path(
            self._number, asked, use.ended, use.running, is_dead=_is_last(use)
        )
        if use.t is None or not use.agent:
            return
        self._now = max(self._now, use.t)
        if use.side:
            return
        before = self._agents.pop(use.agent, None)
        if before is not None:
            path.pace = self._learn(before, use)
            before.is_dead = True
        path.kind = _kind(use, path.pace)
        self._agents[use.agent] = path
        if len(self._agents) > _AGENTS:
            self._agents.popitem(last=False)

    def _learn(self, before: _Path, use: Use) -> float | None:
        """Learn from the time since an agent's last answer; return its pace."""
        if before.running or before.asked is None or use.t is None:
            return before.pace
        last = before.asked if before.ended is None else before.ended
        gap = max(use.t - last, 0.0)
        self._gaps.add(before.kind, gap)
        if before.pace is None:
            return math.log1p(gap)
        return before.pace + _WEIGHT * (math.log1p(gap) - before.pace)

    def touch(self, entries: Iterable[Entry]) -> None:
        path = self._path
        for entry in entries:
            before = self._paths.get(entry)
            if before is not None:
                if path.is_dead and not before.is_dead:
                    continue  # another agent goes on with it
                self._leave(entry, before)
            self._paths[entry] = path
            path.entries[entry] = None
        if path.entries:
            self._held.add(path)

    def keep(self, entries: Iterable[Entry]) -> None:
        self._keeping.update(entries)

    def split(self, entry: Entry, head: Entry) -> None:
        path = self._paths[entry]
        self._paths[head] = path
        path.entries[head] = None
        for kept in (self._kept, self._keeping):
            if entry in kept:
                kept.add(head)

    def discard(self, entry: Entry) -> None:
        self._leave(entry, self._paths.pop(entry))
        self._kept.discard(entry)
        self._keeping.discard(entry)

    def _leave(self, entry: Entry, path: _Path) -> None:
        path.entries.pop(entry, None)
        if not path.entries:
            self._held.discard(path)

    def choose(self, may_go: MayGo) -> Any:
        if self._order is None:
            self._order = sorted(self._held, key=self._rank, reverse=True)
        spared = None
        for path in self._order:
            for entry in path.entries:
                if may_go(entry):
                    if entry not in self._kept:
                        return entry
                    spared = spared or entry
        return spared

    def _rank(self, path: _Path) -> tuple[int, float, int]:
        """Return a value that is the greater, the sooner a path goes."""
        if path.is_dead:
            return 3, 0.0, -path.number
        if path.running:
            return 0, 0.0, -path.number
        if path.asked is None:
            return 2, 0.0, -path.number
        last = path.asked if path.ended is None else path.ended
        elapsed = self._now - last  # negative while its answer goes on
        rest = self._gaps.rest(path.kind, max(elapsed, 0.0)) + max(-elapsed, 0.0)
        return 1, rest, -path.number

    @property
    def entries(self) -> Iterable[Any]:
        return self._paths.keys()

    def learned(self) -> dict[str, Any]:
        return self._gaps.to_dict()

    def recall(self, learned: dict[str, Any]) -> None:
        self._gaps = Gaps()
        self._gaps.load(learned)


def _is_last(use: Use) -> bool:
    """Whether no request goes on with this one."""
    is_sub_agent = "/" in use.agent
    return use.side or (is_sub_agent and use.stop == "end_turn")


def _kind(use: Use, pace: float | None) -> Kind:
    """Return how an answer ended: its stop reason, the agent's pace, the last tool."""
    speed = "new" if pace is None else f"pace{bisect(_PACES, pace)}"
    return (use.stop or "unknown", speed, *use.tools[-1:])


@cache
def _priors() -> dict[str, list[float]]:
    """Return gaps of public traces, see ``bench/priors.py``."""
    text = files(__package__).joinpath("priors.json").read_text()
    values: dict[str, list[float]] = json.loads(text)["gaps"]
    return values
