"""Which request stored what a commit evicts, in memory and on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from mlxlab.engine import Engine
from mlxlab.strategies import Commit, Handle, Plan, Tier
from mlxlab.strategies.disk import Disk

__all__ = ["Evicted", "Owners"]


@dataclass(frozen=True, slots=True)
class Evicted:
    """Tokens that a commit has evicted.

    Attributes:
        of: the request that had stored them; None if it is unknown, as what an earlier
            server left on disk.
    """

    tokens: int
    of: int | None
    tier: Tier


@dataclass(slots=True)
class _Shelf:
    """What one store or one disk holds.

    Attributes:
        held: by handle, the request that stored it and its tokens.
    """

    held: dict[Handle, tuple[int, int]] = field(default_factory=dict)

    def lose(self, handle: Handle, kept: int = 0) -> tuple[int | None, int]:
        """Keep only this many tokens; return the request and the tokens that go."""
        request, tokens = self.held.pop(handle, (None, 0))
        if request is not None and kept:
            self.held[handle] = request, kept
        return request, max(tokens - kept, 0)


class Owners:
    """Follows the commits of all engines; used by the worker only.

    It holds a row for each handle that is stored, so the capacities bound it.
    """

    def __init__(self) -> None:
        self._memory: WeakKeyDictionary[Engine, _Shelf] = WeakKeyDictionary()
        self._disks: WeakKeyDictionary[Disk, _Shelf] = WeakKeyDictionary()

    def note(
        self, engine: Engine, request: int, plan: Plan, commit: Commit
    ) -> Iterator[Evicted]:
        """Note a commit, and yield what it has evicted, by owner.

        Args:
            engine: whose strategy has committed.
            request: number of the request that was stored.
            plan: of its prompt.
            commit: what has changed.
        """
        shelf = self._memory.setdefault(engine, _Shelf())
        yield from self._evicted(commit.evicted, _dropped(shelf, plan, commit))
        shelf.held |= {p.handle: (request, p.stop - p.start) for p in commit.put}
        disk = engine.strategy.tier
        if disk is not None:
            yield from self._erased(disk, request, commit)

    def _evicted(
        self, tokens: int, dropped: Iterable[tuple[int | None, int]]
    ) -> Iterator[Evicted]:
        """Yield the owners of tokens; several may have stored the same ones."""
        lost: Counter[int | None] = Counter()
        for owner, own in dropped:
            lost[owner] += min(own, tokens - lost.total())
        lost[None] += tokens - lost.total()
        yield from (Evicted(n, of, Tier.MEMORY) for of, n in lost.items() if n)

    def _erased(self, disk: Disk, request: int, commit: Commit) -> Iterator[Evicted]:
        shelf = self._disks.setdefault(disk, _Shelf())
        lost: Counter[int | None] = Counter()
        for handle in commit.disk.erase:
            owner, tokens = shelf.lose(handle)
            lost[owner] += tokens
        lost[None] += commit.disk.evicted - lost.total()
        yield from (Evicted(n, of, Tier.DISK) for of, n in lost.items() if n)
        written = commit.disk.write
        shelf.held |= {r.handle: (request, r.stop - r.start) for r in written}


def _dropped(
    shelf: _Shelf, plan: Plan, commit: Commit
) -> Iterator[tuple[int | None, int]]:
    """Yield owners and tokens of what a commit drops and the request does not hold."""
    own: Counter[Handle] = Counter()
    for span in plan.in_memory.spans:
        own[span.handle] += span.length
    for handle in commit.drop:
        owner, tokens = shelf.lose(handle)
        yield owner, max(tokens - own[handle], 0)
    for cut in commit.cut:
        yield shelf.lose(cut.handle, cut.stop - cut.start)
