"""S3-FIFO: a small queue, a main queue and ghosts."""

from __future__ import annotations

from collections.abc import Iterator

from mlxlab.strategies.eviction.base import Entry, register
from mlxlab.strategies.eviction.queued import Ghosts, Queued, count_tokens

__all__ = ["SmallMainFifo"]

#: Share of the stored tokens that the small queue may hold.
_SMALL = 0.1
#: Most uses that are counted, and those that move an entry to the main queue.
_MOST = 3
_MOVED = 2


@register
class SmallMainFifo(Queued):
    """New entries stand in a small queue; those used again move to the main one.

    Once the small queue holds a tenth of all tokens, its oldest entry goes, unless two
    later requests used it. Otherwise the oldest entry of the main queue goes; one that
    was used returns to its end, and one use is forgotten. A new entry that has a ghost
    is put into the main queue. In the tree an entry that others depend on keeps its
    place, and the next one goes.
    """

    name = "s3fifo"
    summary = "new entries leave early, unless they are used again"
    literature = "S3-FIFO (Yang et al., SOSP 2023)"
    rank = 40

    def __init__(self) -> None:
        super().__init__()
        self._ghosts = Ghosts()
        self._hits: dict[Entry, int] = {}

    def _insert(self, entry: Entry) -> None:
        returns = self._ghosts.take(self.use.agent, entry.start)
        (self._second if returns else self._first)[entry] = None
        self._hits[entry] = 0

    def _hit(self, entry: Entry) -> None:
        self._hits[entry] = min(self._hits[entry] + 1, _MOST)

    def split(self, entry: Entry, head: Entry) -> None:
        super().split(entry, head)
        self._hits[head] = self._hits[entry]

    def discard(self, entry: Entry) -> None:
        if entry in self._first:
            most = max(len(self._second), 1)
            self._ghosts.add(self._agents[entry], entry.start, most)
        super().discard(entry)
        del self._hits[entry]

    def _order(self) -> Iterator[Entry]:
        small, main = count_tokens(self._first), count_tokens(self._second)
        if small >= _SMALL * (small + main):
            yield from self._oldest_new()
        yield from self._oldest_used()
        yield from self._first

    def _oldest_new(self) -> Iterator[Entry]:
        for entry in list(self._first):
            if self._hits[entry] < _MOVED:
                yield entry
            else:
                del self._first[entry]
                self._second[entry] = None
                self._hits[entry] = 0

    def _oldest_used(self) -> Iterator[Entry]:
        for _ in range(_MOST + 1):
            for entry in list(self._second):
                if not self._hits[entry]:
                    yield entry
                else:
                    self._hits[entry] -= 1
                    self._second.move_to_end(entry)
