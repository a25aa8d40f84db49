"""What a model's disk holds: one tree of all sequences, which its strategies share.

Keys and values are written in segments of some hundred tokens and checkpoints by
themselves. Each is one file, which is never rewritten. Everything that is computed goes
to disk, so that a restart finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.prompt import Prompt, Tokens
from mlxlab.sizes import format_size
from mlxlab.strategies.plan import DiskCommit, Handle, Plan, Record, Span, Tier
from mlxlab.strategies.sequences.disk_tree import DiskEntry, DiskTree, Path

__all__ = ["Disk"]

#: Tokens of a segment.
_SEGMENT = 256
#: Fewer tokens are computed, not loaded.
_LEAST = 64
#: Bytes of a file's header, its row of the index, and the end of its last disk block.
_FILE = 32 << 10
#: Bytes of an empty index with its log.
_INDEX = 1 << 20
_ID_BYTES = 4


class Disk:
    """Decides what is written and erased; the least recently used leaves go first.

    Every commit uses the segments of its path. Of the checkpoints on the path it uses
    only those that were taken, or resumed from.

    Args:
        budget: most bytes, with headers and the index.
        token_bytes: bytes of the rows at one id of a prompt.
        checkpoint_bytes: bytes of a checkpoint; 0 for a model that can be cut anywhere.
        unit: tokens that one id stands for.
        segment: most tokens of a segment.
        least: fewest tokens that are worth loading.
        overhead: bytes that each file needs beside its arrays.
        index: bytes of the empty index.

    Attributes:
        budget: see above.
        unit: see above.
        pays: whether loading positions ``[start, stop)`` is faster than computing them.

    Raises:
        StrategyError: the budget holds nothing.
    """

    def __init__(
        self,
        budget: int,
        token_bytes: int,
        checkpoint_bytes: int = 0,
        *,
        unit: int = 1,
        segment: int = _SEGMENT,
        least: int = _LEAST,
        overhead: int = _FILE,
        index: int = _INDEX,
    ) -> None:
        self.token_bytes = token_bytes + _ID_BYTES * unit
        self.checkpoint_bytes = checkpoint_bytes
        self.overhead = overhead
        self.unit = unit
        self.pays: Callable[[int, int], bool] = lambda start, stop: True
        self._segment = max(segment // unit, 1)
        self._least = -(-least // unit)
        self._tree = DiskTree()
        self._handle = 0
        self._now = 0
        self._index = index
        self.resize(budget)

    def resize(self, budget: int) -> DiskCommit:
        """Change the budget, and return what has to go for it.

        Raises:
            StrategyError: the budget holds nothing.
        """
        one = self._size(0, self._segment)
        if self.checkpoint_bytes:
            one += self._size(0, 0)
        if budget < self._index + one:
            raise StrategyError(
                f"disk={format_size(budget)} holds nothing of this model; give at "
                f"least {self._index + one} bytes"
            )
        self.budget = budget
        return self.shrink(budget)

    def shrink(self, size: int) -> DiskCommit:
        """Return what has to go for this many bytes, the least recent first."""
        return _erasure(self._make_room(self.budget - size))

    @property
    def nbytes(self) -> int:
        """Bytes of all files and of the index, at most."""
        return self._index + self._tree.held

    def size(self, start: int, stop: int) -> int:
        """Return the bytes that are read to restore positions ``[start, stop)``."""
        return (stop - start) * self.token_bytes + self.checkpoint_bytes

    def loaded_bytes(self, plan: Plan) -> int:
        """Return the bytes that a plan reads; 0 if it reads nothing."""
        return self.size(0, plan.disk_tokens) if plan.disk_tokens else 0

    @property
    def handles(self) -> frozenset[Handle]:
        """What is held."""
        return frozenset(entry.handle for entry in self._tree)

    def record(self, handle: Handle) -> Record:
        """Return what is held under a handle.

        Raises:
            KeyError: nothing is.
        """
        entry = self._tree.get(handle)
        if entry is None:
            raise KeyError(f"{handle} is not held")
        return entry.record

    def record_bytes(self, record: Record) -> int:
        """Return the bytes that a record may take on disk, beside the index."""
        return self._size(record.start, record.stop)

    def extend(self, prompt: Prompt, plan: Plan) -> Plan:
        """Return the plan with what memory lacks of the prompt's prefix."""
        path, end, resume = self._find(prompt.tokens[:-1])
        start = plan.prefix_length
        if end - start < self._least or not self.pays(start, end):
            return plan
        return replace(
            plan,
            spans=plan.spans + tuple(_spans(path, start, end)),
            best_match=max(plan.best_match, end),
            resume=resume.handle if resume else None,
            resume_tier=Tier.DISK if resume else Tier.MEMORY,
            captures=tuple(place for place in plan.captures if place > end),
        )

    def store(self, tokens: Tokens, plan: Plan) -> DiskCommit:
        """Write of a computed sequence what is not held yet.

        Args:
            tokens: the sequence.
            plan: of its prompt.
        """
        self._now += 1
        places = self._places(len(tokens), plan)
        path = self._tree.cut(tokens, places)
        used = self._used(path, places, plan)
        self._tree.touch(used)  # so that none of these has to make room
        room = self.budget - self._index - sum(entry.size for entry in used)
        pieces = self._fitting(self._missing(path, places, len(tokens)), room)
        erased = self._make_room(sum(self._size(*piece) for piece in pieces))
        written = [self._add(path, tokens, *piece) for piece in pieces]
        self._tree.touch([*used, *written])
        return replace(
            _erasure(erased),
            used=tuple(entry.handle for entry in used),
            number=self._now,
            write=tuple(entry.record for entry in written),
        )

    def touch(self, tokens: Tokens) -> None:
        """Make what is held of these tokens the most recent."""
        path = [node for node, _ in self._tree.walk(tokens)]
        held = {node.value for node in path} | set(map(self._tree.checkpoint, path))
        self._tree.touch(entry for entry in held if entry is not None)

    def lose(self, handle: Handle) -> DiskCommit:
        """Forget what could not be written or read, with all that depends on it."""
        lost = self._tree.get(handle)
        gone = [] if lost is None else self._tree.dependents(lost)
        for entry in gone:
            self._tree.remove(entry)
        return _erasure(entry.record for entry in gone)

    def load(self, records: Iterable[Record]) -> DiskCommit:
        """Hold what an earlier process has written.

        Returns:
            Records to erase: what cannot be reached, and what the budget has no
            room for.
        """
        unknown: list[Record] = []
        for record in sorted(records, key=lambda own: (own.start, own.is_checkpoint)):
            self._handle = max(self._handle, record.handle)
            self._now = max(self._now, record.used)
            if self._tree.attach(record, self.record_bytes(record)) is None:
                unknown.append(record)
        by_use = sorted(self._tree, key=lambda entry: entry.record.used)
        for _, entries in groupby(by_use, key=lambda entry: entry.record.used):
            self._tree.touch(entries)
        return _erasure([*unknown, *self._make_room(0)])

    def check(self) -> None:
        """Recount everything from scratch.

        Raises:
            IntegrityError: counts disagree, the budget is exceeded, or an entry is less
                recent than one that depends on it.
        """
        if self.nbytes > self.budget:
            raise IntegrityError(f"disk: {self.nbytes} bytes in {self.budget}")
        if any(self.record_bytes(e.record) != e.size for e in self._tree):
            raise IntegrityError("disk: an entry of another size")
        self._tree.check()

    def _find(self, tokens: Tokens) -> tuple[Path, int, DiskEntry | None]:
        """Return the path of ``tokens``, where it can be resumed, and from what."""
        path, end, resume = [], 0, None
        for node, length in self._tree.walk(tokens):
            path.append(node)
            if not self.checkpoint_bytes:
                end = node.start + length
            elif length == len(node.tokens) and (kept := self._tree.checkpoint(node)):
                end, resume = node.stop, kept
        return path, end, resume

    def _places(self, length: int, plan: Plan) -> list[int]:
        """Return where checkpoints of a computed sequence are at hand, ascending."""
        if not self.checkpoint_bytes:
            return []
        own = plan.in_memory.captures
        return sorted({*(place for place in own if place <= length), length} - {0})

    def _used(self, path: Path, places: Iterable[int], plan: Plan) -> list[DiskEntry]:
        """Return the entries of a path that a commit uses, each once."""
        resumed = plan.resume if plan.resume_tier is Tier.DISK else None
        found: dict[DiskEntry, None] = {}
        taken = set(places)
        for node in path:
            assert node.value is not None
            found[node.value] = None
            kept = self._tree.checkpoint(node)
            if kept and (kept.handle == resumed or node.stop in taken):
                found[kept] = None
        return list(found)

    def _missing(
        self, path: Path, places: list[int], length: int
    ) -> Iterator[tuple[int, int]]:
        """Yield the pieces of a sequence that are not held, front to back."""
        held = path[-1].stop if path else 0
        kept = {node.stop for node in path if self._tree.checkpoint(node)}
        yield from ((p, p) for p in places if p <= held and p not in kept)
        further = [place for place in places if place > held]
        for stop in further if self.checkpoint_bytes else [length]:
            while held < stop:
                yield held, min(held + self._segment, stop)
                held = min(held + self._segment, stop)
            if self.checkpoint_bytes:
                yield stop, stop

    def _fitting(
        self, pieces: Iterable[tuple[int, int]], room: int
    ) -> list[tuple[int, int]]:
        """Return the first pieces that fit; rows before a checkpoint only with it."""
        chosen = []
        for piece in pieces:
            room -= self._size(*piece)
            if room < 0:
                break
            chosen.append(piece)
        while self.checkpoint_bytes and chosen and chosen[-1][0] < chosen[-1][1]:
            chosen.pop()
        return chosen

    def _add(self, path: Path, tokens: Tokens, start: int, stop: int) -> DiskEntry:
        """Hold a piece of a sequence; its path grows by a segment."""
        # Most pieces follow the last node.
        back = reversed(path)
        at = next((node.value for node in back if node.stop == start), None)
        parent = at.handle if at is not None else 0
        self._handle += 1
        ids = tokens[start:stop].tobytes()
        record = Record(self._handle, parent, start, stop, self._now, ids)
        return self._tree.add(path, record, self._size(start, stop))

    def _make_room(self, needed: int) -> list[Record]:
        """Remove the least recent entries until this many bytes are free."""
        removed = []
        while len(self._tree) and self.nbytes + needed > self.budget:
            entry = next(iter(self._tree))
            self._tree.remove(entry)
            removed.append(entry.record)
        return removed

    def _size(self, start: int, stop: int) -> int:
        """Return the bytes of a segment, or of a checkpoint."""
        rows = (stop - start) * self.token_bytes
        return (rows or self.checkpoint_bytes) + self.overhead


def _erasure(records: Iterable[Record]) -> DiskCommit:
    """Return the commit that erases what the tree holds no longer."""
    gone = list(records)
    return DiskCommit(
        erase=tuple(record.handle for record in gone),
        evicted=sum(record.stop - record.start for record in gone),
    )


def _spans(path: Path, start: int, end: int) -> Iterator[Span]:
    """Yield a path's positions ``[start, end)``, one span a segment."""
    nodes = [node for node in path if node.start < end and node.stop > start]
    for entry, group in groupby(nodes, key=lambda node: node.value):
        assert entry is not None
        own = list(group)
        first, stop = max(own[0].start, start), min(own[-1].stop, end)
        source = first - entry.record.start
        yield Span(entry.handle, source, first, stop - first, tier=Tier.DISK)
