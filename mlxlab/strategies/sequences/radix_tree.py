"""A radix tree of token sequences: common prefixes are stored once."""

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
        value: data of the tree's owner; both parts of a split share it.
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
        block: ids in a block. Common prefixes are whole blocks; a shorter tail of a
            sequence is left out.
    """

    def __init__(self, value: T, *, block: int = 1) -> None:
        self.block = block
        self.root: Node[T] = Node(0, np.empty(0, np.int32), None, value)

    def walk(self, tokens: Tokens) -> Iterator[tuple[Node[T], int]]:
        """Follow a sequence through the tree.

        Yields:
            A node behind the root, and how many of its leading tokens agree, at least a
            block. Only the last node may agree in part.
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
        """Yield all nodes behind the root, parents before their children."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            if node is not self.root:
                yield node

    def append(self, parent: Node[T], tokens: Tokens, value: T) -> Node[T]:
        """Add a child whose first block differs from the others'; whole blocks."""
        # A view would keep all of the sequence it was cut from.
        child = Node(parent.stop, tokens.copy(), parent, value)
        parent.children[self._key(tokens)] = child
        return child

    def split(self, node: Node[T], length: int) -> Node[T]:
        """Move the first ``length`` tokens of a node to a new one in front of it."""
        parent = self._parent(node)
        head = Node(node.start, node.tokens[:length], parent, node.value)
        parent.children[self._key(node.tokens)] = head
        node.start, node.tokens = head.stop, node.tokens[length:]
        node.parent = head
        head.children[self._key(node.tokens)] = node
        return head

    def trim(self, leaf: Node[T], length: int) -> None:
        """Keep the first ``length`` tokens of a leaf; remove it if that is 0."""
        if length == 0:
            del self._parent(leaf).children[self._key(leaf.tokens)]
            leaf.parent = None
        leaf.tokens = leaf.tokens[:length]

    def _key(self, tokens: Tokens) -> bytes:
        """Return the first block; a shorter key, found nowhere, for a shorter tail."""
        return tokens[: self.block].tobytes()

    def _parent(self, node: Node[T]) -> Node[T]:
        if node.parent is None:
            raise ValueError("the root is neither split nor trimmed")
        return node.parent
