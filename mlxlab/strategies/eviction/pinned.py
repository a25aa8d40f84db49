"""Base of policies that choose pinned entries after all others."""

from __future__ import annotations

from collections.abc import Iterable

from mlxlab.strategies.eviction.base import Entry, Eviction
from mlxlab.strategies.use import Use

__all__ = ["SparesPinned"]


class SparesPinned(Eviction):
    """Knows which entries are pinned.

    Attributes:
        pinned: entries that the latest commit kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pinned: set[Entry] = set()
        self._next: set[Entry] = set()  # those that this commit keeps

    def begin(self, use: Use) -> None:
        super().begin(use)
        self.pinned, self._next = self._next, set()

    def keep(self, entries: Iterable[Entry]) -> None:
        self._next.update(entries)

    def split(self, entry: Entry, head: Entry) -> None:
        for pinned in (self.pinned, self._next):
            if entry in pinned:
                pinned.add(head)

    def discard(self, entry: Entry) -> None:
        self.pinned.discard(entry)
        self._next.discard(entry)
