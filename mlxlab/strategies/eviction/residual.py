"""The path whose next use is expected last goes first, the newest one included."""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from mlxlab.strategies.eviction.agents import Agents
from mlxlab.strategies.eviction.base import Entry, MayGo, register
from mlxlab.strategies.eviction.gaps import Gaps, Kind
from mlxlab.strategies.eviction.pinned import SparesPinned
from mlxlab.strategies.use import UNKNOWN, Use

__all__ = ["ResidualLife"]

#: Weight of the latest gap in an agent's pace, which is a mean of logarithms.
_WEIGHT = 0.2
#: Limits between paces, in seconds between an answer and the next request.
_PACES = tuple(map(math.log1p, (5.0, 8.0, 12.0, 20.0, 40.0, 100.0)))


@dataclass(slots=True, eq=False)
class _Path:
    """What one agent used last.

    Attributes:
        number: counts uses, in order.
        use: the request.
        pace: mean logarithm of the agent's gaps; None before the first.
        kind: how its answer ended.
        is_dead: whether nothing will ask for it again.
        entries: its entries, the deepest first.
    """

    number: int
    use: Use
    pace: float | None
    kind: Kind
    is_dead: bool
    entries: dict[Entry, None] = field(default_factory=dict)


@register
class ResidualLife(SparesPinned):
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
        self._agents: Agents[_Path] = Agents()
        self.recall(_priors())
        self._path = _Path(0, UNKNOWN, None, (), is_dead=False)
        self._paths: dict[Entry, _Path] = {}
        self._held: set[_Path] = set()  # those with entries
        self._order: list[_Path] | None = None

    def begin(self, use: Use) -> None:
        super().begin(use)
        self._order = None
        before, gap = self._agents.take(use)
        pace = None
        if before is not None:
            before.is_dead = True
            pace = before.pace if gap is None else _mean(before.pace, gap)
        number, is_dead = self._path.number + 1, _is_last(use)
        self._path = _Path(number, use, pace, _kind(use, pace), is_dead)
        self._agents.put(self._path)

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

    def split(self, entry: Entry, head: Entry) -> None:
        super().split(entry, head)
        path = self._paths[entry]
        self._paths[head] = path
        path.entries[head] = None

    def discard(self, entry: Entry) -> None:
        super().discard(entry)
        self._leave(entry, self._paths.pop(entry))

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
                    if entry not in self.pinned:
                        return entry
                    spared = spared or entry
        return spared

    def _rank(self, path: _Path) -> tuple[int, float, int]:
        """Return a value that is the greater, the sooner a path goes."""
        if path.is_dead:
            return 3, 0.0, -path.number
        if path.use.running:
            return 0, 0.0, -path.number
        last = path.use.last if path.use.agent else None
        if last is None:
            return 2, 0.0, -path.number
        elapsed = self._agents.now - last  # negative while its answer goes on
        rest = self._agents.gaps.rest(path.kind, max(elapsed, 0.0)) + max(-elapsed, 0.0)
        return 1, rest, -path.number

    @property
    def entries(self) -> Iterable[Any]:
        return self._paths.keys()

    def learned(self) -> dict[str, list[float]]:
        return self._agents.gaps.to_dict()

    def recall(self, learned: Mapping[str, Sequence[float]]) -> None:
        self._agents.gaps = Gaps.of(learned)


def _mean(pace: float | None, gap: float) -> float:
    """Return the pace of an agent after another gap of this many seconds."""
    latest = math.log1p(gap)
    return latest if pace is None else pace + _WEIGHT * (latest - pace)


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
