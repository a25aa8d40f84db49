"""Accesses: the requests of a workload as paths through one tree of all sequences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxlab.prompt import Tokens
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies.sequences.radix_tree import RadixTree

__all__ = ["Access", "Accesses", "Numbers", "Steps"]

Numbers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Access:
    """One request.

    Attributes:
        asked: the nodes of its prompt, without the last token, which is always
            computed.
        made: the nodes of the sequence that it leaves; they begin with ``asked``.
        tokens: of its prompt.
    """

    asked: tuple[int, ...]
    made: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Accesses:
    """All requests, in order, and the nodes that they pass.

    A node holds consecutive ids that are always requested together.

    Attributes:
        starts: the position of each node's first id.
        lengths: the ids of each node.
        unit: tokens that an id stands for.
    """

    requests: tuple[Access, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    unit: int

    @classmethod
    def of(cls, requests: Iterable[RenderedRequest], block: int = 1) -> Accesses:
        """Return the accesses of a workload, which is read once.

        Args:
            requests: in order.
            block: ids in a block; sequences are taken as their whole blocks.
        """
        tree = RadixTree(None, block=block)
        sequences = []
        unit = 1
        for request in requests:
            asked, made = request.prompt.tokens[:-1], request.computed.tokens
            asked = asked[: len(asked) // block * block]
            made = made[: len(made) // block * block]
            _insert(tree, asked)
            _insert(tree, made)
            sequences.append((asked, made, request.tokens))
            unit = request.unit
        nodes = list(tree)
        number = {node: i for i, node in enumerate(nodes)}

        def path(ids: Tokens) -> tuple[int, ...]:
            return tuple(number[node] for node, _ in tree.walk(ids))

        return cls(
            requests=tuple(Access(path(a), path(m), n) for a, m, n in sequences),
            starts=tuple(node.start for node in nodes),
            lengths=tuple(len(node.tokens) for node in nodes),
            unit=unit,
        )


@dataclass(frozen=True, slots=True)
class Steps:
    """The requests' steps through the tree: one element for each node of each request.

    Attributes:
        time: number of the request.
        start, length: ids in front of the node, and in it.
        before, after: the step of the last and of the next request through the same
            node; -1 for none.
        usable: whether the request asks for the node's tokens, known from before.
    """

    time: Numbers
    start: Numbers
    length: Numbers
    before: Numbers
    after: Numbers
    usable: Flags

    @classmethod
    def of(cls, accesses: Accesses) -> Steps:
        requests = accesses.requests
        made = [np.array(access.made, np.int64) for access in requests]
        asked = [np.arange(len(r.made)) < len(r.asked) for r in requests]
        node = np.concatenate([np.empty(0, np.int64), *made])
        before, after = _neighbours(node)
        return cls(
            time=np.repeat(np.arange(len(made)), [len(path) for path in made]),
            start=np.array(accesses.starts, np.int64)[node],
            length=np.array(accesses.lengths, np.int64)[node],
            before=before,
            after=after,
            usable=np.concatenate([np.empty(0, np.bool_), *asked]) & (before >= 0),
        )

    def within(self, top: int) -> Steps:
        """Return the steps of a tree that is cut off at position ``top``."""
        length = np.clip(top - self.start, 0, self.length)
        usable = self.usable & (length > 0)
        return Steps(self.time, self.start, length, self.before, self.after, usable)

    @property
    def held(self) -> Flags:
        """Whether the next request through the node can use a checkpoint of it."""
        return (self.after >= 0) & self.usable[self.after]

    @property
    def followed(self) -> Flags:
        """Whether the next step is usable as well, in the same request."""
        found = np.zeros(len(self.time), np.bool_)
        found[:-1] = self.usable[1:] & (self.time[1:] == self.time[:-1])
        return found


def _insert(tree: RadixTree[None], ids: Tokens) -> None:
    """Add ``ids`` to the tree as a path that ends at the end of a node."""
    last = tree.root
    for node, length in list(tree.walk(ids)):
        last = node if length == len(node.tokens) else tree.split(node, length)
    if last.stop < len(ids):
        tree.append(last, ids[last.stop :], None)


def _neighbours(nodes: Numbers) -> tuple[Numbers, Numbers]:
    """Return the index of the last and of the next equal element; -1 for none."""
    before, after = np.full((2, len(nodes)), -1)
    order = np.argsort(nodes, kind="stable")
    earlier, later = order[:-1], order[1:]
    equal = nodes[earlier] == nodes[later]
    before[later[equal]] = earlier[equal]
    after[earlier[equal]] = later[equal]
    return before, after
