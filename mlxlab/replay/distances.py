"""What least-recently-used eviction reuses at every capacity, from one pass.

A cache that evicts the least recently used block holds, at any capacity, the first
blocks of one list: all blocks in order of their last use. So a larger cache holds all
that a smaller one does, and the place of a block in the list says which capacities hold
it: its stack distance (Mattson et al., 1970, doi:10.1147/sj.92.0078).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mlxlab.prompt import Tokens
from mlxlab.replay.commits import Commits
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies.sequences.radix_tree import RadixTree
from mlxlab.strategies.use import Use

__all__ = ["ReuseDistances"]

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReuseDistances:
    """The stack distances of all requested tokens that were stored before.

    These are those of ``paged:evict=lru``, exactly, as long as no prompt is pinned and
    the model can be cut anywhere. There the blocks of a path lie in the list in their
    order, the first on top; so each request asks for a few runs of consecutive places.

    Attributes:
        request: int64, shape ``[runs]``: the number of the request that asks for a run.
        above: int64, shape ``[runs]``: tokens in the list above the run.
        length: int64, shape ``[runs]``: tokens of the run.
        requests: how many there are.
        block: tokens that are stored or evicted together.
    """

    request: Numbers
    above: Numbers
    length: Numbers
    requests: int
    block: int

    @classmethod
    def of(cls, requests: Iterable[RenderedRequest], block: int = 1) -> Self:
        """Measure a workload, which is read once.

        Args:
            requests: in order; all of one unit.
            block: ids in a block.
        """
        recency = _Recency(block)
        commits: Commits[None] = Commits()
        runs: list[tuple[int, int, int]] = []
        number, unit = 0, 1
        for number, request in enumerate(requests, start=1):
            commits.before(request)
            found = recency.find(request.prompt.tokens[:-1])
            runs += [(number - 1, above, length) for above, length in found]
            # What is stored later is bound to its request now.
            stored = request.computed.tokens

            def store(length: int, use: Use, tokens: Tokens = stored) -> None:
                recency.use(tokens[:length])

            commits.after(request, store)
            unit = request.unit
        table = np.array(runs, np.int64).reshape(-1, 3)
        return cls(
            request=table[:, 0],
            above=table[:, 1] * unit,
            length=table[:, 2] * unit,
            requests=number,
            block=block * unit,
        )

    def reused(self, capacity: int) -> Numbers:
        """Return the reused tokens of each request.

        Args:
            capacity: in tokens.
        """
        whole = capacity // self.block * self.block
        held = np.clip(whole - self.above, 0, self.length)
        counts = np.bincount(self.request, weights=held, minlength=self.requests)
        return counts.astype(np.int64)

    @property
    def enough(self) -> int:
        """The least capacity, in tokens, that holds whatever is asked for again."""
        return int((self.above + self.length).max(initial=0))


class _Recency:
    """All sequences so far, each of their ids with the time of its last use.

    Those of one time are consecutive: what later sequences have in common with the one
    of that time is its beginning.
    """

    def __init__(self, block: int) -> None:
        self._tree = RadixTree(0, block=block)
        self._counts = _Counts()  # ids by the time of their last use
        self._now = 0

    def find(self, ids: Tokens) -> list[tuple[int, int]]:
        """Return the known beginning of ``ids`` in runs that were last used together.

        Returns:
            For each run the ids that were used after it or lie above it, and its ids.
        """
        lengths: dict[int, int] = {}  # by time
        for node, length in self._tree.walk(ids):
            lengths[node.value] = lengths.get(node.value, 0) + length
        return [(self._counts.after(time), n) for time, n in lengths.items()]

    def use(self, ids: Tokens) -> None:
        """Note that a sequence is used, and stored as far as it was not known."""
        ids = ids[: len(ids) // self._tree.block * self._tree.block]
        last = self._tree.root
        taken: dict[int, int] = {}  # ids by the time of their use before this one
        for node, length in list(self._tree.walk(ids)):
            time = node.value
            taken[time] = taken.get(time, 0) + length
            last = node
            if length < len(node.tokens):
                last = self._tree.split(node, length)
            last.value = self._now
        for time, length in taken.items():
            self._counts.add(time, -length)
        if last.stop < len(ids):
            self._tree.append(last, ids[last.stop :], self._now)
        self._counts.append(len(ids))
        self._now += 1


class _Counts:
    """A growing list of counts with their sums, each in logarithmic time.

    A binary indexed tree (Fenwick, 1994, doi:10.1002/spe.4380240306).
    """

    def __init__(self) -> None:
        self._sums = [0]  # of the counts in [i - (i & -i), i)
        self._total = 0

    def append(self, count: int) -> None:
        i = len(self._sums)
        own, part = count, i - 1
        while part > i - (i & -i):
            own += self._sums[part]
            part -= part & -part
        self._sums.append(own)
        self._total += count

    def add(self, index: int, count: int) -> None:
        self._total += count
        i = index + 1
        while i < len(self._sums):
            self._sums[i] += count
            i += i & -i

    def after(self, index: int) -> int:
        """Return the sum of all counts behind one."""
        left, i = self._total, index + 1
        while i:
            left -= self._sums[i]
            i -= i & -i
        return left
