"""Bases of policies that put entries in an order, the first to go in front."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mlxlab.strategies.eviction.base import Entry, MayGo
from mlxlab.strategies.eviction.pinned import SparesPinned
from mlxlab.strategies.use import Use

__all__ = ["Ordered", "Ranked", "Visits"]


class Ordered(SparesPinned):
    """Drops the first entry of an order that may go.

    What the request itself uses goes only where nothing else may go, and pinned entries
    after that: those who describe such policies make room first, then store.
    """

    def __init__(self) -> None:
        super().__init__()
        self._used: set[Entry] = set()

    def begin(self, use: Use) -> None:
        super().begin(use)
        self._used.clear()

    def touch(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._used.add(entry)
            self._note(entry)

    @abstractmethod
    def _note(self, entry: Entry) -> None:
        """Note that the request uses or stores an entry."""

    def discard(self, entry: Entry) -> None:
        super().discard(entry)
        self._used.discard(entry)

    def choose(self, may_go: MayGo) -> Any:
        spared: dict[tuple[bool, bool], Entry] = {}
        for entry in self._order():
            if may_go(entry):
                reasons = entry in self.pinned, entry in self._used
                if not any(reasons):
                    return entry
                spared.setdefault(reasons, entry)
        return spared[min(spared)]

    @abstractmethod
    def _order(self) -> Iterable[Entry]:
        """Yield all entries, the first to go in front."""


@dataclass(slots=True)
class Visits:
    """The uses of an entry.

    Attributes:
        count: requests that have used or stored it.
        last: number of the latest commit that did.
        score: as the policy set it then; minus infinity before.
        agent: who used it last.
    """

    count: int = 0
    last: int = 0
    score: float = -math.inf
    agent: str = ""


class Ranked(Ordered):
    """Ranks entries by their visits, once a commit; the lowest rank goes first.

    Of equal ranks the least recently used goes first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._visits: dict[Entry, Visits] = {}  # the least recent first
        self._number = 0
        self._ranking: list[Entry] | None = None

    def begin(self, use: Use) -> None:
        super().begin(use)
        self._number += 1

    def _note(self, entry: Entry) -> None:
        own = self._visits.pop(entry, None) or Visits()
        own.count += not self.use.running  # else it is stored again at its end
        own.last = self._number
        self._visits[entry] = own
        self._visit(own)
        own.agent = self.use.agent
        self._ranking = None

    def split(self, entry: Entry, head: Entry) -> None:
        super().split(entry, head)
        self._visits[head] = replace(self._visits[entry])

    def discard(self, entry: Entry) -> None:
        super().discard(entry)
        del self._visits[entry]

    def _order(self) -> Iterable[Entry]:
        if self._ranking is None:
            self._ranking = sorted(self._visits, key=self._rank)
        return (entry for entry in self._ranking if entry in self._visits)

    def _visit(self, own: Visits) -> None:
        """Set the score of an entry that is used."""

    @abstractmethod
    def _rank(self, entry: Entry) -> float:
        """Return a value that is the lower, the sooner an entry goes."""

    @property
    def entries(self) -> Iterable[Any]:
        return self._visits.keys()
