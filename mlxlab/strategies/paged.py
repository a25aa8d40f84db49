"""One pool of blocks that all sequences share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count

from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies.base import CAPACITY, EVICT, Example, Strategy
from mlxlab.strategies.parameters import Limit, ParameterValue, parameter
from mlxlab.strategies.plan import Commit, Cut, Handle, Plan, Put, Span
from mlxlab.strategies.registry import register
from mlxlab.strategies.sequences.radix_tree import Node, RadixTree

__all__ = ["Paged", "Stored"]


@dataclass(slots=True, eq=False)
class Stored:
    """Positions ``[start, stop)`` of one path through the tree, under one handle.

    Attributes:
        generation: of its keys and values, see :class:`Span`.
    """

    handle: Handle
    generation: int
    start: int
    stop: int


@register
class Paged(Strategy):
    """Blocks in a prefix tree; the eviction policy chooses the leaf that goes first.

    Paged storage follows vLLM (arXiv 2309.06180), the tree SGLang (arXiv 2312.07104).
    Sequences share the blocks of their common prefixes, and a block goes only when
    no resident block depends on it. Neighbouring blocks that were stored together and
    last used together are one node, and blocks that were stored together have one
    handle.

    A leaf is evicted block by block from its end. It may be one of the sequence that
    is stored: then some of that is not stored at all, and the rest can be restored.
    While its request runs, all of a sequence stays.

    A commit evicts the tokens of the earlier blocks that go: each stands for a prefix
    of its own that nothing else can restore.

    Plans made here are exact, so all blocks are of generation 0. A subclass may plan
    otherwise: blocks with an approximate token, or behind one, have the plan's
    generation. A block replaces one of a higher generation, never one of a lower
    generation, so no block is closer to exact than its parent.
    """

    name = "paged"
    summary = "one pool of blocks shared by all sequences"
    literature = "automatic prefix caching (vLLM), RadixAttention (SGLang)"
    rank = 40
    example = Example({"block": 4, "capacity": 90})

    block: int = parameter(
        64,
        "Tokens in a block; a shorter tail is not stored.",
        Limit.BLOCK,
        tries=(16, 32, 64, 128, 256),
    )
    capacity: int = parameter(
        CAPACITY,
        "Most bytes to hold; a longer sequence keeps its head.",
        Limit.CAPACITY,
    )
    evict: str = EVICT

    def __init__(self, **parameters: ParameterValue) -> None:
        super().__init__(**parameters)
        block = self.block
        if self._limit == 0:
            raise StrategyError(
                f"{self.name}: capacity={self.capacity} holds no block; give at least "
                f"{block * self.token_bytes} bytes for blocks of {block} tokens"
            )
        self._handles = count(1)
        self._tree = RadixTree(Stored(0, 0, 0, 0), block=block)
        self._tokens = 0

    @property
    def _limit(self) -> int:
        """Most tokens to hold, whole blocks."""
        return self.capacity_tokens // self.block * self.block

    def _match(self, prompt: Prompt) -> Plan:
        spans = tuple(self._walk(prompt.tokens[:-1]))
        return Plan(len(prompt), spans, sum(span.length for span in spans))

    def _walk(self, tokens: Tokens) -> Iterator[Span]:
        """Yield the resident prefix of ``tokens``."""
        for node, length in self._tree.walk(tokens):
            stored = node.value
            source = node.start - stored.start
            yield Span(stored.handle, source, node.start, length, stored.generation)

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        """Add the blocks that are not resident yet; evict blocks to make room."""
        tokens = prompt.tokens[: self.restorable_after(len(prompt))]
        change = _Change(self._handles)
        exact = len(tokens)
        if plan.generation:  # else an answer goes on as exactly as its prompt
            exact = min(exact, plan.exact_length // self.block * self.block)
        path = self._resident(tokens, exact)
        for node in path:
            if node.value.generation > self._generation(node.start, exact, plan):
                change.replace(node, self._generation(node.start, exact, plan))
        last = path[-1] if path else self._tree.root
        path += self._added(tokens, exact, plan, last, change)
        self.eviction.touch(reversed(path))
        self._evict(max(self._tokens - self._limit, 0), change, set(path))
        return change.commit()

    def restorable_after(self, length: int) -> int:
        return min(length // self.block * self.block, self._limit)

    def _resident(self, tokens: Tokens, exact: int) -> list[Node[Stored]]:
        """Return the resident path of ``tokens``, cut at its end and at ``exact``.

        Nodes behind a cut keep their recency.
        """
        path: list[Node[Stored]] = []
        for node, length in list(self._tree.walk(tokens)):
            if length < len(node.tokens):
                node = self._split(node, length)
            if node.value.generation and node.start < exact < node.stop:
                path.append(self._split(node, exact - node.start))
            path.append(node)
        return path

    def _split(self, node: Node[Stored], length: int) -> Node[Stored]:
        head = self._tree.split(node, length)
        self.eviction.split(node, head)
        return head

    def _added(
        self,
        tokens: Tokens,
        exact: int,
        plan: Plan,
        last: Node[Stored],
        change: _Change,
    ) -> Iterator[Node[Stored]]:
        """Append nodes for the rest of ``tokens``, one exact and one approximate."""
        for stop in (exact, len(tokens)):
            if last.stop < stop:
                generation = self._generation(last.stop, exact, plan)
                stored = change.add(generation, last.stop, stop)
                last = self._tree.append(last, tokens[last.stop : stop], stored)
                self._tokens += len(last.tokens)
                yield last

    def _generation(self, position: int, exact: int, plan: Plan) -> int:
        """Return the generation of keys and values computed at ``position``."""
        return 0 if position < exact else plan.generation

    def _touch(self, tokens: Tokens) -> None:
        nodes = [node for node, _ in self._tree.walk(tokens)]
        self.eviction.keep(reversed(nodes))

    def _evict(
        self, tokens: int, change: _Change, own: Collection[Node[Stored]]
    ) -> None:
        """Evict this many tokens, whole blocks, as the policy chooses."""
        self._tokens -= tokens
        while tokens:
            leaf: Node[Stored] = self.eviction.choose_beside(own, _is_leaf)
            left = max(len(leaf.tokens) - tokens, 0)
            tokens -= len(leaf.tokens) - left
            change.evict(leaf, left)
            self._tree.trim(leaf, left)
            if not left:
                self.eviction.discard(leaf)

    @property
    def stored_tokens(self) -> int:
        return self._tokens

    def _check_stored(self) -> None:
        """Recount tokens and handles; parents are as exact."""
        held: Counter[Stored] = Counter()
        for node in self._tree:
            held[node.value] += len(node.tokens)
        booked = set(self.eviction.entries)
        if held.total() != self._tokens or booked != set(self._tree):
            raise IntegrityError(
                f"{self.name}: {held.total()} tokens in {len(set(self._tree))} nodes "
                f"where {self._tokens} in {len(booked)} are booked"
            )
        handles = {stored.handle for stored in held}
        if len(handles) != len(held) or any(
            stored.stop - stored.start != tokens for stored, tokens in held.items()
        ):
            raise IntegrityError(f"{self.name}: handles and nodes disagree")
        self._check_order()

    def _check_order(self) -> None:
        parents = {
            node: node.parent
            for node in self._tree
            if node.parent is not None and node.parent is not self._tree.root
        }
        self.eviction.check(parents)
        for node, parent in parents.items():
            if parent.value.generation > node.value.generation:
                raise IntegrityError(
                    f"{self.name}: handle {node.value.handle} is closer to exact than "
                    "its parent"
                )


def _is_leaf(node: Node[Stored]) -> bool:
    return not node.children


class _Change:
    """Collects the changes that one commit makes to the store.

    Args:
        handles: unused handles.

    Attributes:
        evicted: tokens that could be restored before, and have gone.
    """

    def __init__(self, handles: Iterator[Handle]) -> None:
        self.evicted = 0
        self._handles = handles
        self._before: dict[Stored, int] = {}  # first position before the cut
        self._put: list[Stored] = []
        self._new: set[Stored] = set()  # those put that hold nothing known before

    def add(self, generation: int, start: int, stop: int) -> Stored:
        """Store positions that were not stored before."""
        stored = self._store(generation, start, stop)
        self._new.add(stored)
        return stored

    def replace(self, node: Node[Stored], generation: int) -> None:
        """Store a node's positions anew; they are the first that its handle holds."""
        self._cut(node.value, node.stop, node.value.stop)
        node.value = self._store(generation, node.start, node.stop)

    def evict(self, leaf: Node[Stored], left: int) -> None:
        """Keep only this many tokens of a leaf."""
        stored = leaf.value
        if stored not in self._new:
            self.evicted += len(leaf.tokens) - left
        self._cut(stored, stored.start, leaf.start + left)

    def _store(self, generation: int, start: int, stop: int) -> Stored:
        stored = Stored(next(self._handles), generation, start, stop)
        self._put.append(stored)
        return stored

    def _cut(self, stored: Stored, start: int, stop: int) -> None:
        if stored not in self._put:
            self._before.setdefault(stored, stored.start)
        stored.start, stored.stop = start, stop

    def commit(self) -> Commit:
        return Commit(
            drop=tuple(s.handle for s in self._before if s.start == s.stop),
            cut=tuple(
                Cut(stored.handle, stored.start - start, stored.stop - start)
                for stored, start in self._before.items()
                if stored.start < stored.stop
            ),
            put=tuple(
                Put(stored.handle, stored.start, stored.stop)
                for stored in self._put
                if stored.start < stored.stop
            ),
            evicted=self.evicted,
        )
