"""Least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from mlxlab.errors import IntegrityError
from mlxlab.strategies.eviction.base import Entry, Eviction, MayGo, register

__all__ = ["LeastRecent"]


@register
class LeastRecent(Eviction):
    """The entry that was used longest ago goes first; the newest one never.

    A path is touched from its end to its root, so an entry is always more recent than
    those behind it, and the least recent of all is one that may go.
    """

    name = "lru"
    summary = "the least recently used first"
    rank = 10

    def __init__(self) -> None:
        super().__init__()
        self._order: OrderedDict[Entry, None] = OrderedDict()  # oldest first

    def touch(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._order[entry] = None
            self._order.move_to_end(entry)

    def split(self, entry: Entry, head: Entry) -> None:
        """Do nothing: the head is touched in this commit, and so placed."""

    def discard(self, entry: Entry) -> None:
        del self._order[entry]

    def choose(self, may_go: MayGo) -> Any:
        return next(entry for entry in self._order if may_go(entry))

    @property
    def entries(self) -> Iterable[Any]:
        return self._order.keys()

    def check(self, parents: Mapping[Any, Any]) -> None:
        age = {entry: i for i, entry in enumerate(self._order)}
        for entry, parent in parents.items():
            if age[parent] < age[entry]:
                raise IntegrityError(f"lru: {entry} is more recent than its parent")
