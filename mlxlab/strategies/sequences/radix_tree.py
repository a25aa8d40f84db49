"""A tree of token sequences that keeps what they begin with once.

Knows token ids: no handles, no capacity, no policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from mlxlab.prompt import Tokens, common_prefix

__all__ = ["Node", "RadixTree"]

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Node(Generic[T]):
    """Positions ``[start, stop)`` of all sequences that pass through it.

    Attributes:
        tokens: ids at these positions, whole blocks; empty for the root only.
        parent: the node in front; None for the root, and for one that was removed.
        value: what the tree's owner knows of it; both parts of a split have the same.
        children: by the first block of their ids.
    """

    start: int
    tokens: Tokens
    parent: Node[T] | None
    value: T
    children: dict[bytes, Node[T]] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


class RadixTree(Generic[T]):
    """Sequences as paths from the root (the radix tree of SGLang, arXiv 2312.07104).

    Args:
        value: of the root.
        block: sequences begin alike if so many ids are the same, or twice as many, and
            so on; what is less than a block at the end of a sequence is left out.
    """

    def __init__(self, value: T, *, block: int = 1) -> None:
        self.block = block
        self.root: Node[T] = Node(0, np.empty(0, np.int32), None, value)

    def walk(self, tokens: Tokens) -> Iterator[tuple[Node[T], int]]:
        """Nodes that a sequence passes through, and how much of each it agrees with.

        Yields:
            A node behind the root, and leading tokens of it, at least a block. Only of
            the last node it may be fewer than all.
        """
        node, position = self.root, 0
        while child := node.children.get(self._key(tokens[position:])):
            shared = common_prefix(child.tokens, tokens[position:])
            shared -= shared % self.block
            yield child, shared
            if shared < len(child.tokens):
                return
            node, position = child, child.stop

    def __iter__(self) -> Iterator[Node[T]]:
        """All nodes behind the root, parents before their children."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            if node is not self.root:
                yield node

    def append(self, parent: Node[T], tokens: Tokens, value: T) -> Node[T]:
        """A new child that begins unlike the others, whole blocks."""
        # A view would keep all of the sequence it was cut from.
        child = Node(parent.stop, tokens.copy(), parent, value)
        parent.children[self._key(tokens)] = child
        return child

    def split(self, node: Node[T], length: int) -> Node[T]:
        """Put the first ``length`` tokens of a node into a new one in front of it."""
        parent = self._parent(node)
        head = Node(node.start, node.tokens[:length], parent, node.value)
        parent.children[self._key(node.tokens)] = head
        node.start, node.tokens = head.stop, node.tokens[length:]
        node.parent = head
        head.children[self._key(node.tokens)] = node
        return head

    def trim(self, leaf: Node[T], length: int) -> None:
        """Leave the first ``length`` tokens of a leaf; of none, no leaf."""
        if length == 0:
            del self._parent(leaf).children[self._key(leaf.tokens)]
            leaf.parent = None
        leaf.tokens = leaf.tokens[:length]

    def _key(self, tokens: Tokens) -> bytes:
        """A shorter one than all others where there is less than a block."""
        return tokens[: self.block].tobytes()

    def _parent(self, node: Node[T]) -> Node[T]:
        if node.parent is None:
            raise ValueError("the root is neither split nor trimmed")
        return node.parent
