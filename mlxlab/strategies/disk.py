"""What a model's disk holds: one tree of all sequences, which its strategies share.

Keys and values are written in segments of some hundred tokens and checkpoints by
themselves. Each is one file, which is never rewritten. Everything that is computed goes
to disk, so that a restart finds it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.prompt import Prompt, Tokens
from mlxlab.sizes import format_size
from mlxlab.strategies.plan import DiskCommit, Handle, Plan, Record, Span, Tier
from mlxlab.strategies.sequences.radix_tree import Node, RadixTree

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


@dataclass(slots=True, eq=False)
class _Entry:
    """A segment or a checkpoint.

    Attributes:
        size: bytes on disk.
        last: the node that it ends at. The nodes of a segment share it as their value.
    """

    record: Record
    size: int
    last: Node[_Entry | None]

    @property
    def depth(self) -> tuple[int, bool]:
        """Greater than that of all entries that this one depends on."""
        return self.record.start, self.record.is_checkpoint


_Node = Node[_Entry | None]


class Disk:
    """Decides what is written and erased; the least recently used leaves go first.

    Every commit uses the segments of its path from the end to the root. So a segment is
    always more recent than what depends on it, and the least recent entry of all is a
    leaf. Of the checkpoints on the path only those that were taken, or resumed from,
    are used.

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
        self._tree: RadixTree[_Entry | None] = RadixTree(None)
        self._entries: OrderedDict[Handle, _Entry] = OrderedDict()  # oldest first
        self._checkpoints: dict[_Node, _Entry] = {}  # by the node that they end
        self._handle = 0
        self._now = 0
        self._held = 0
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
        return DiskCommit(erase=tuple(self._make_room(self.budget - size)))

    @property
    def nbytes(self) -> int:
        """Bytes of all files and of the index, at most."""
        return self._index + self._held

    def size(self, start: int, stop: int) -> int:
        """Return the bytes that are read to restore positions ``[start, stop)``."""
        return (stop - start) * self.token_bytes + self.checkpoint_bytes

    def loaded_bytes(self, plan: Plan) -> int:
        """Return the bytes that a plan reads; 0 if it reads nothing."""
        return self.size(0, plan.disk_tokens) if plan.disk_tokens else 0

    @property
    def handles(self) -> frozenset[Handle]:
        """What is held."""
        return frozenset(self._entries)

    def record(self, handle: Handle) -> Record:
        """Return what is held under a handle.

        Raises:
            KeyError: nothing is.
        """
        return self._entries[handle].record

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
            resume=resume.record.handle if resume else None,
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
        path = self._resident(tokens, places)
        used = self._used(path, places, plan)
        for entry in used:
            self._entries.move_to_end(entry.record.handle)
        room = self.budget - self._index - sum(entry.size for entry in used)
        pieces = list(self._fitting(self._missing(path, places, len(tokens)), room))
        erased = self._make_room(sum(self._size(*piece) for piece in pieces))
        written = [self._add(path, tokens, *piece) for piece in pieces]
        self._touch([*used, *written])
        return DiskCommit(
            erase=tuple(erased),
            used=tuple(entry.record.handle for entry in used),
            number=self._now,
            write=tuple(entry.record for entry in written),
        )

    def lose(self, handle: Handle) -> DiskCommit:
        """Forget what could not be written or read, with all that depends on it."""
        lost = self._entries.get(handle)
        if lost is None:
            return DiskCommit()
        erased = [lost]
        if not lost.record.is_checkpoint:
            top = lost.last
            while top.parent is not None and top.parent.value is lost:
                top = top.parent
            below = set(_subtree(top))
            erased = [e for e in self._entries.values() if e.last in below]
        erased.sort(key=lambda own: own.depth, reverse=True)
        for entry in erased:
            self._remove(entry)
        return DiskCommit(erase=tuple(entry.record.handle for entry in erased))

    def load(self, records: Iterable[Record]) -> DiskCommit:
        """Hold what an earlier process has written.

        Returns:
            Records to erase: what cannot be reached, and what the budget has no
            room for.
        """
        unknown: list[Handle] = []
        for record in sorted(records, key=lambda own: (own.start, own.is_checkpoint)):
            node = self._node_at(record.parent, record.start)
            self._handle = max(self._handle, record.handle)
            self._now = max(self._now, record.used)
            if node is None:
                unknown.append(record.handle)
                continue
            if not record.is_checkpoint:
                tokens = np.frombuffer(record.ids, np.int32)
                node = self._tree.append(node, tokens, None)
            self._hold(record, node)
        ordered = sorted(
            self._entries.values(), key=lambda e: (-e.record.used, *e.depth)
        )
        for entry in reversed(ordered):
            self._entries.move_to_end(entry.record.handle)
        return DiskCommit(erase=(*unknown, *self._make_room(0)))

    def check(self) -> None:
        """Recount everything from scratch.

        Raises:
            IntegrityError: counts disagree, the budget is exceeded, or an entry is less
                recent than one that depends on it.
        """
        nodes = list(self._tree)
        found = {node.value for node in nodes} | set(self._checkpoints.values())
        size = sum(self._size(e.record.start, e.record.stop) for e in found if e)
        if found != set(self._entries.values()) or size != self._held:
            raise IntegrityError(f"disk: {size} bytes, {self._held} booked")
        if self.nbytes > self.budget:
            raise IntegrityError(f"disk: {self.nbytes} bytes in {self.budget}")
        age = {handle: i for i, handle in enumerate(self._entries)}
        for entry in self._entries.values():
            record = entry.record
            if record.parent and age[record.parent] < age[record.handle]:
                raise IntegrityError(f"disk: {record.handle} outlives its parent")
        covered = sum(len(node.tokens) for node in nodes)
        if covered != sum(len(e.record.ids) for e in self._entries.values()) // 4:
            raise IntegrityError("disk: segments and tree disagree")

    def _find(self, tokens: Tokens) -> tuple[list[_Node], int, _Entry | None]:
        """Return the path of ``tokens``, where it can be resumed, and from what."""
        path, end, resume = [], 0, None
        for node, length in self._tree.walk(tokens):
            path.append(node)
            if not self.checkpoint_bytes:
                end = node.start + length
            elif length == len(node.tokens) and node in self._checkpoints:
                end, resume = node.stop, self._checkpoints[node]
        return path, end, resume

    def _places(self, length: int, plan: Plan) -> list[int]:
        """Return where checkpoints of a computed sequence are at hand, ascending."""
        if not self.checkpoint_bytes:
            return []
        own = plan.in_memory.captures
        return sorted({*(place for place in own if place <= length), length} - {0})

    def _resident(self, tokens: Tokens, places: Iterable[int]) -> list[_Node]:
        """Return the path of ``tokens``, with nodes that end at its end and places."""
        path: list[_Node] = []
        cuts = set(places)
        for node, length in list(self._tree.walk(tokens)):
            ends = sorted(p for p in cuts if node.start < p < node.start + length)
            for stop in (*ends, node.start + length):
                if stop < node.stop:
                    path.append(self._tree.split(node, stop - node.start))
                else:
                    path.append(node)
        return path

    def _used(
        self, path: list[_Node], places: Iterable[int], plan: Plan
    ) -> list[_Entry]:
        """Return the entries of a path that a commit uses, each once."""
        resumed = plan.resume if plan.resume_tier is Tier.DISK else None
        found: dict[_Entry, None] = {}
        taken = set(places)
        for node in path:
            assert node.value is not None
            found[node.value] = None
            kept = self._checkpoints.get(node)
            if kept and (kept.record.handle == resumed or node.stop in taken):
                found[kept] = None
        return list(found)

    def _missing(
        self, path: list[_Node], places: list[int], length: int
    ) -> Iterator[tuple[int, int]]:
        """Yield the pieces of a sequence that are not held, front to back."""
        held = path[-1].stop if path else 0
        kept = {node.stop for node in path if node in self._checkpoints}
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

    def _add(self, path: list[_Node], tokens: Tokens, start: int, stop: int) -> _Entry:
        """Hold a piece, and put the node of a segment at the end of the path."""
        at = next((node for node in path if node.stop == start), self._tree.root)
        self._handle += 1
        parent = at.value.record.handle if at.value is not None else 0
        ids = tokens[start:stop]
        if start < stop:
            at = self._tree.append(at, ids, None)
            path.append(at)
        return self._hold(
            Record(self._handle, parent, start, stop, self._now, ids.tobytes()), at
        )

    def _hold(self, record: Record, node: _Node) -> _Entry:
        entry = _Entry(record, self._size(record.start, record.stop), node)
        if record.is_checkpoint:
            self._checkpoints[node] = entry
        else:
            node.value = entry
        self._entries[record.handle] = entry
        self._held += entry.size
        return entry

    def _touch(self, entries: Iterable[_Entry]) -> None:
        for entry in sorted(entries, key=lambda own: own.depth, reverse=True):
            self._entries.move_to_end(entry.record.handle)

    def _make_room(self, needed: int) -> list[Handle]:
        """Remove the least recent entries until this many bytes are free."""
        erased = []
        while self._entries and self.nbytes + needed > self.budget:
            entry = next(iter(self._entries.values()))
            self._remove(entry)
            erased.append(entry.record.handle)
        return erased

    def _remove(self, entry: _Entry) -> None:
        node = entry.last
        if entry.record.is_checkpoint:
            del self._checkpoints[node]
        else:
            while node.value is entry and node.parent is not None:
                parent = node.parent
                self._tree.trim(node, 0)
                node = parent
        del self._entries[entry.record.handle]
        self._held -= entry.size

    def _node_at(self, handle: Handle, position: int) -> _Node | None:
        """Return the node of a segment that ends at a position; None if none can."""
        if handle == 0:
            return self._tree.root if position == 0 else None
        entry = self._entries.get(handle)
        if entry is None or not entry.record.start < position <= entry.record.stop:
            return None
        node = entry.last
        while node.start >= position:
            assert node.parent is not None
            node = node.parent
        if position < node.stop:
            node = self._tree.split(node, position - node.start)
        return node

    def _size(self, start: int, stop: int) -> int:
        """Return the bytes of a segment, or of a checkpoint."""
        rows = (stop - start) * self.token_bytes
        return (rows or self.checkpoint_bytes) + self.overhead


def _spans(path: Iterable[_Node], start: int, end: int) -> Iterator[Span]:
    """Yield a path's positions ``[start, end)``, one span a segment."""
    nodes = (node for node in path if node.start < end and node.stop > start)
    for record, group in groupby(nodes, key=_record_of):
        own = list(group)
        first, stop = max(own[0].start, start), min(own[-1].stop, end)
        source = first - record.start
        yield Span(record.handle, source, first, stop - first, tier=Tier.DISK)


def _record_of(node: _Node) -> Record:
    assert node.value is not None
    return node.value.record


def _subtree(top: _Node) -> Iterator[_Node]:
    waiting = [top]
    while waiting:
        node = waiting.pop()
        waiting += node.children.values()
        yield node
