"""Adaptive replacement."""

from __future__ import annotations

from collections.abc import Iterator

from mlxlab.strategies.eviction.base import Entry, register
from mlxlab.strategies.eviction.queued import Ghosts, Queued, count_tokens

__all__ = ["AdaptiveReplacement"]


@register
class AdaptiveReplacement(Queued):
    """Balances entries that one request used against those that several used.

    Each kind has its own least recently used order and its ghosts. The first kind has a
    target size in tokens: it grows when a ghost of the first kind returns, and shrinks
    when one of the second kind does. The kind that is above its target loses an entry.
    In the tree it is the least recently used leaf of that kind, or else of the other.
    """

    name = "arc"
    summary = "balances recency and frequency by what returns"
    literature = "ARC (Megiddo and Modha, FAST 2003), as in vLLM and LMCache"
    rank = 50

    def __init__(self) -> None:
        super().__init__()
        self._target = 0.0
        self._recent = Ghosts()
        self._frequent = Ghosts()

    def _insert(self, entry: Entry) -> None:
        place = self.use.agent, entry.start
        recent, frequent = len(self._recent), len(self._frequent)
        tokens = entry.stop - entry.start
        if self._recent.take(*place):
            held = count_tokens(self.entries)
            grown = self._target + tokens * max(1.0, frequent / recent)
            self._target = min(grown, held)
        elif self._frequent.take(*place):
            shrunk = self._target - tokens * max(1.0, recent / frequent)
            self._target = max(shrunk, 0.0)
        else:
            self._first[entry] = None
            return
        self._second[entry] = None

    def _hit(self, entry: Entry) -> None:
        self._first.pop(entry, None)
        self._second[entry] = None
        self._second.move_to_end(entry)

    def discard(self, entry: Entry) -> None:
        ghosts = self._recent if entry in self._first else self._frequent
        ghosts.add(self._agents[entry], entry.start, len(self._agents))
        super().discard(entry)

    def _order(self) -> Iterator[Entry]:
        one, other = self._first, self._second
        if count_tokens(one) <= self._target:
            one, other = other, one
        yield from one
        yield from other
