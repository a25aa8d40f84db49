"""A tree of what a disk holds: segments of rows, and checkpoints behind them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mlxlab.errors import IntegrityError
from mlxlab.prompt import Tokens
from mlxlab.strategies.plan import Handle, Record
from mlxlab.strategies.sequences.radix_tree import Node, RadixTree

__all__ = ["DiskEntry", "DiskTree", "Path"]


@dataclass(slots=True, eq=False)
class DiskEntry:
    """A segment or a checkpoint.

    Attributes:
        size: bytes on disk.
        last: the node that it ends at. The nodes of a segment share it as their value.
    """

    record: Record
    size: int
    last: Node[DiskEntry | None]

    @property
    def handle(self) -> Handle:
        return self.record.handle

    @property
    def depth(self) -> tuple[int, bool]:
        """Greater than that of all entries that this one depends on."""
        return self.record.start, self.record.is_checkpoint


_Node = Node[DiskEntry | None]

Path = list[_Node]
"""The nodes of a sequence, from the first token on."""


class DiskTree:
    """Entries by their tokens, in the order of their last use.

    Whoever uses an entry uses those in front of it, from the end to the root. So an
    entry is always more recent than what depends on it, and the least recent of all
    is a leaf.

    Attributes:
        held: bytes of all entries.
    """

    def __init__(self) -> None:
        self.held = 0
        self._tree: RadixTree[DiskEntry | None] = RadixTree(None)
        self._entries: OrderedDict[Handle, DiskEntry] = OrderedDict()  # oldest first
        self._checkpoints: dict[_Node, DiskEntry] = {}  # by the node that they end

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[DiskEntry]:
        """Yield all entries, the least recent first."""
        yield from self._entries.values()

    def get(self, handle: Handle) -> DiskEntry | None:
        """Return an entry; None if nothing is held under the handle."""
        return self._entries.get(handle)

    def walk(self, tokens: Tokens) -> Iterator[tuple[_Node, int]]:
        """Follow a sequence: see :meth:`RadixTree.walk`."""
        return self._tree.walk(tokens)

    def checkpoint(self, node: _Node) -> DiskEntry | None:
        """Return the checkpoint at the end of a node."""
        return self._checkpoints.get(node)

    def cut(self, tokens: Tokens, places: Iterable[int]) -> Path:
        """Return the path of ``tokens``, with nodes that end at its end and places."""
        path: Path = []
        cuts = sorted(places)
        for node, length in list(self._tree.walk(tokens)):
            end = node.start + length
            for stop in (*(p for p in cuts if node.start < p < end), end):
                if stop < node.stop:
                    path.append(self._tree.split(node, stop - node.start))
                else:
                    path.append(node)
        return path

    def add(self, path: Path, record: Record, size: int) -> DiskEntry:
        """Hold a record on a path; the rows of a segment follow its last node."""
        back = reversed(path)  # most records follow the last node
        at = next((node for node in back if node.stop == record.start), self._tree.root)
        entry = self._hold(at, record, size)
        if not record.is_checkpoint:
            path.append(entry.last)
        return entry

    def attach(self, record: Record, size: int) -> DiskEntry | None:
        """Hold a record behind its parent; None if that does not reach so far."""
        node = self._node_at(record.parent, record.start)
        return None if node is None else self._hold(node, record, size)

    def touch(self, entries: Iterable[DiskEntry]) -> None:
        """Make entries the most recent, the deepest of them least."""
        for entry in sorted(entries, key=lambda own: own.depth, reverse=True):
            self._entries.move_to_end(entry.handle)

    def remove(self, entry: DiskEntry) -> None:
        """Remove an entry that no other depends on."""
        node = entry.last
        if entry.record.is_checkpoint:
            del self._checkpoints[node]
        else:
            while node.value is entry and node.parent is not None:
                parent = node.parent
                self._tree.trim(node, 0)
                node = parent
        del self._entries[entry.handle]
        self.held -= entry.size

    def dependents(self, entry: DiskEntry) -> list[DiskEntry]:
        """Return an entry and what depends on it, the deepest first."""
        if entry.record.is_checkpoint:
            return [entry]
        top = entry.last
        while top.parent is not None and top.parent.value is entry:
            top = top.parent
        below = set(_subtree(top))
        found = [own for own in self if own.last in below]
        return sorted(found, key=lambda own: own.depth, reverse=True)

    def check(self) -> None:
        """Recount everything from scratch.

        Raises:
            IntegrityError: counts disagree, or an entry is less recent than one that
                depends on it.
        """
        nodes = list(self._tree)
        found = {node.value for node in nodes} | set(self._checkpoints.values())
        size = sum(entry.size for entry in found if entry)
        if found != set(self) or size != self.held:
            raise IntegrityError(f"disk: {size} bytes, {self.held} booked")
        age = {handle: i for i, handle in enumerate(self._entries)}
        for entry in self:
            parent = entry.record.parent
            if parent and age[parent] < age[entry.handle]:
                raise IntegrityError(f"disk: {entry.handle} outlives its parent")
        covered = sum(len(node.tokens) for node in nodes)
        if covered != sum(own.record.stop - own.record.start for own in self):
            raise IntegrityError("disk: segments and tree disagree")

    def _hold(self, at: _Node, record: Record, size: int) -> DiskEntry:
        if record.is_checkpoint:
            entry = DiskEntry(record, size, at)
            self._checkpoints[at] = entry
        else:
            tokens = np.frombuffer(record.ids, np.int32)
            node = self._tree.append(at, tokens, None)
            node.value = entry = DiskEntry(record, size, node)
        self._entries[record.handle] = entry
        self.held += size
        return entry

    def _node_at(self, handle: Handle, position: int) -> _Node | None:
        """Return the node of a segment that ends at a position; None if none can."""
        if handle == 0:
            return self._tree.root if position == 0 else None
        entry = self.get(handle)
        if entry is None or not entry.record.start < position <= entry.record.stop:
            return None
        node = entry.last
        while node.start >= position:
            assert node.parent is not None
            node = node.parent
        if position < node.stop:
            node = self._tree.split(node, position - node.start)
        return node


def _subtree(top: _Node) -> Iterator[_Node]:
    waiting = [top]
    while waiting:
        node = waiting.pop()
        waiting += node.children.values()
        yield node
