"""Segmented LRU."""

from __future__ import annotations

from mlxlab.strategies.eviction.base import Entry, register
from mlxlab.strategies.eviction.ordered import Ranked

__all__ = ["SegmentedLeastRecent"]

#: Requests after which an entry is protected.
_PROTECTED = 2


@register
class SegmentedLeastRecent(Ranked):
    """Entries that one request used go before those that several used.

    This is the form that SGLang gives to segmented LRU for its radix tree: the number
    of uses decides on the segment, and the protected one has no limit. In the tree a
    leaf of the first segment goes first, and a split part keeps the uses of the whole.
    """

    name = "slru"
    summary = "entries of one request first, then the least recently used"
    literature = "segmented LRU (Karedla et al., 1994), as in SGLang"
    rank = 30

    def _rank(self, entry: Entry) -> float:
        return self._visits[entry].count >= _PROTECTED
