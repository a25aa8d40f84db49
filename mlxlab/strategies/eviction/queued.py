"""Base of policies with two queues and with ghosts of what has gone."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, TypeAlias

from mlxlab.strategies.eviction.base import Entry
from mlxlab.strategies.eviction.ordered import Ordered

__all__ = ["Ghosts", "Queue", "Queued", "count_tokens"]

Queue: TypeAlias = OrderedDict[Entry, None]
"""Entries, the first to go in front."""


class Ghosts:
    """Entries that have gone, the latest last.

    A policy sees no tokens. So an entry counts as the same when it is of the same agent
    and begins at the same position; without an agent there is no ghost.
    """

    def __init__(self) -> None:
        self._places: OrderedDict[tuple[str, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def add(self, agent: str, start: int, limit: int) -> None:
        """Remember an entry; forget the oldest ones beyond ``limit``."""
        if agent:
            self._places[agent, start] = None
            self._places.move_to_end((agent, start))
        while len(self._places) > limit:
            self._places.popitem(last=False)

    def take(self, agent: str, start: int) -> bool:
        """Forget an entry; return whether it was remembered."""
        known = (agent, start) in self._places
        self._places.pop((agent, start), None)
        return known


class Queued(Ordered):
    """Keeps entries in two queues.

    An entry that is split leaves both parts in its queue.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: Queue = OrderedDict()
        self._second: Queue = OrderedDict()
        self._agents: dict[Entry, str] = {}  # who used an entry last
        self._uses: dict[Entry, int] = {}

    def _note(self, entry: Entry) -> None:
        if entry not in self._agents:
            self._insert(entry)
            self._uses[entry] = 0
        self._agents[entry] = self.use.agent
        if not self.use.running:  # else it is stored again at its end
            if self._uses[entry]:
                self._hit(entry)
            self._uses[entry] += 1

    def split(self, entry: Entry, head: Entry) -> None:
        super().split(entry, head)
        self._agents[head] = self._agents[entry]
        self._uses[head] = self._uses[entry]
        self._queue(entry)[head] = None

    def discard(self, entry: Entry) -> None:
        super().discard(entry)
        del self._queue(entry)[entry]
        del self._agents[entry], self._uses[entry]

    def _queue(self, entry: Entry) -> Queue:
        return self._first if entry in self._first else self._second

    @abstractmethod
    def _insert(self, entry: Entry) -> None:
        """Put a new entry into a queue."""

    @abstractmethod
    def _hit(self, entry: Entry) -> None:
        """Note that a request used an entry that an earlier one had stored."""

    @property
    def entries(self) -> Iterable[Any]:
        return self._agents.keys()


def count_tokens(entries: Iterable[Entry]) -> int:
    """Return the positions that entries hold."""
    return sum(entry.stop - entry.start for entry in entries)
