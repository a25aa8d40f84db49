"""Greedy-Dual-Size-Frequency."""

from __future__ import annotations

from mlxlab.strategies.eviction.base import Entry, register
from mlxlab.strategies.eviction.ordered import Ranked, Visits

__all__ = ["GreedyDual"]


@register
class GreedyDual(Ranked):
    """The entry with the lowest ``age + frequency * cost / size`` goes first.

    The age of the cache is the value of what went last, so an entry that is not used
    any more goes in the end, however often it was used. The cost of an entry is the
    tokens to compute again: its size. So both cancel, and frequency and age remain.
    In the tree the leaf with the lowest value goes, and the age never decreases.
    """

    name = "gdsf"
    summary = "the least frequently used first, with ageing"
    literature = "Greedy-Dual-Size-Frequency (Cherkasova, HPL-98-69)"
    rank = 60

    def __init__(self) -> None:
        super().__init__()
        self._age = 0.0

    def discard(self, entry: Entry) -> None:
        self._age = max(self._age, self._visits[entry].score)
        super().discard(entry)

    def _visit(self, own: Visits) -> None:
        own.score = self._age + own.count

    def _rank(self, entry: Entry) -> float:
        return self._visits[entry].score
