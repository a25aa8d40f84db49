"""Recency and the computation that a byte saves."""

from __future__ import annotations

from collections.abc import Iterable

from mlxlab.strategies.eviction.base import Entry, register
from mlxlab.strategies.eviction.ordered import Ranked

__all__ = ["ComputationSaved"]

#: Weight of the computation saved against recency.
_WEIGHT = 0.5


@register
class ComputationSaved(Ranked):
    """Weighs recency with the computation that a byte of an entry saves.

    Both are scaled to 0..1 over all entries. Marconi is made for models with recurrent
    layers. For attention alone, a token saves the more, the further behind it stands.
    It searches the weight by replaying requests; here the weight is fixed. In the tree
    the leaf with the lowest sum goes first; checkpoints are not admitted here.
    """

    name = "marconi"
    summary = "recency plus computation saved per byte, the lowest first"
    literature = "Marconi (arXiv 2411.19379)"
    rank = 80

    def __init__(self) -> None:
        super().__init__()
        self._oldest = 0
        self._deepest = 0

    def _order(self) -> Iterable[Entry]:
        if self._ranking is None:
            self._oldest = min(own.last for own in self._visits.values())
            self._deepest = max(entry.start + entry.stop for entry in self._visits)
        return super()._order()

    def _rank(self, entry: Entry) -> float:
        age = self._number - self._oldest
        recency = (self._visits[entry].last - self._oldest) / (age or 1)
        saved = (entry.start + entry.stop) / (self._deepest or 1)
        return recency + _WEIGHT * saved
