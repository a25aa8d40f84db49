"""The most that strategies of a class could reuse on the same traffic.

Three classes: exact with infinite memory, exact with finite memory and the future
known, and anything that stood anywhere before. Ceilings are simulated, never served.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.hashed import NumberedRequest
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies.paged import Paged
from mlxlab.strategies.sequences.hashing import window_hashes
from mlxlab.strategies.sequences.radix_tree import RadixTree

__all__ = [
    "CEILINGS",
    "INFINITE",
    "AnyPosition",
    "Foresight",
    "InfiniteMemory",
    "Reachable",
    "any_position",
    "reachable",
]

#: Columns of ceilings wherever they stand beside strategies, in tokens.
CEILINGS = ("infinite", "finite", "any_position")

#: Tokens that no trace has.
INFINITE = 1 << 62


class InfiniteMemory(Paged):
    """Keeps every sequence and restores the longest common prefix with any of them.

    No limit, no granularity: an upper bound for every prefix strategy.
    """

    name = "ceiling"
    summary = "infinite memory, token granularity: the most that exact reuse can give"

    block = 1
    capacity = INFINITE


@dataclass(frozen=True, slots=True)
class _Access:
    """One request: nodes its prompt begins with, and those it leaves behind."""

    asked: tuple[int, ...]
    made: tuple[int, ...]


class Foresight:
    """Finite memory that always gives up what is asked for last.

    Belady's rule, which nothing can beat at the same capacity (doi:10.1147/sj.52.0078).
    Tokens that stand behind each other and are asked for together are one node; a
    parent's next use never comes after its child's, so what stays is always a prefix.

    Args:
        requests: all of the traffic, in order; read once, here.
    """

    def __init__(self, requests: Iterable[RenderedRequest]) -> None:
        tree = RadixTree(None)
        sequences = []
        self._prompts: list[tuple[int, int]] = []  # tokens, and those of an id
        for request in requests:
            # Its last token is always computed.
            asked, made = request.prompt.tokens[:-1], request.computed.tokens
            _insert(tree, asked)
            _insert(tree, made)
            sequences.append((asked, made))
            self._prompts.append((request.tokens, request.unit))
        nodes = list(tree)
        number = {node: i for i, node in enumerate(nodes)}
        self._lengths = [len(node.tokens) for node in nodes]
        self._starts = [node.start for node in nodes]

        def path(tokens: Tokens) -> tuple[int, ...]:
            return tuple(number[node] for node, _ in tree.walk(tokens))

        self._accesses = [_Access(path(a), path(m)) for a, m in sequences]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each request's prompt."""
        return [tokens for tokens, _ in self._prompts]

    def reused(self, capacity: int) -> Iterator[int]:
        """Tokens that each request can reuse if so many are kept between requests."""
        for ids, (tokens, unit) in zip(
            self._held(capacity), self._prompts, strict=True
        ):
            yield min(ids * unit, tokens - 1)

    def _held(self, capacity: int) -> Iterator[int]:
        """Ids of each prompt that are there."""
        if self._prompts:
            capacity //= self._prompts[0][1]
        uses = self._uses()
        held: dict[int, int] = {}  # tokens of a node, the first of them
        total = 0
        line: list[tuple[float, int, int]] = []  # who goes first
        for access in self._accesses:
            yield self._prefix(access.asked, held)
            for node in access.asked:
                uses[node].pop()
            for node in access.made:
                total += self._lengths[node] - held.get(node, 0)
                held[node] = self._lengths[node]
                # Of what is asked for together the end goes first.
                next_use = uses[node][-1]
                heapq.heappush(line, (-next_use, -self._starts[node], node))
            while total > capacity:
                next_use, _, node = entry = heapq.heappop(line)
                if -next_use != uses[node][-1] or node not in held:
                    continue  # it has been used since
                gone = min(held[node], total - capacity)
                total -= gone
                held[node] -= gone
                if held[node]:
                    heapq.heappush(line, entry)
                else:
                    del held[node]

    def _uses(self) -> list[list[float]]:
        """When each node is asked for, the next time last."""
        uses: list[list[float]] = [[float("inf")] for _ in self._lengths]
        for time in reversed(range(len(self._accesses))):
            for node in self._accesses[time].asked:
                uses[node].append(time)
        return uses

    def _prefix(self, path: Iterable[int], held: Mapping[int, int]) -> int:
        length = 0
        for node in path:
            length += held.get(node, 0)
            if held.get(node, 0) < self._lengths[node]:
                break
        return length


class AnyPosition:
    """Content wherever it stood: a bound for reuse that moves what it finds.

    A token counts if it is within a run of ``window`` tokens that stood anywhere in an
    earlier prompt or answer, or in the longest prefix. In hashed traces pieces of
    content count in place of runs.

    Args:
        window: tokens that have to be the same; fewer are found by chance.
    """

    def __init__(self, window: int = 64) -> None:
        self.window = window
        self._memory = InfiniteMemory()
        self._seen: NDArray[np.uint64] = np.empty(0, np.uint64)  # in order
        self._pieces: set[int] = set()

    def reused(self, request: RenderedRequest) -> int | None:
        """Tokens of the request's prompt that could be reused; takes the request in.

        None for a hashed request without numbers for content.
        """
        plan = self._memory.plan(request.prompt)
        self._memory.commit(request.computed, plan)
        if isinstance(request, NumberedRequest):
            found = self._known_pieces(request.content, plan.reused * request.unit)
            known = len(request.content) > 0
        else:
            found, known = self._known_windows(request.prompt.tokens, plan.reused), True
            self._remember(request.computed, plan.reused)
        reused = min(plan.reused * request.unit + found, request.tokens - 1)
        return reused if known else None

    def _known_pieces(self, pieces: NDArray[np.int64], start: int) -> int:
        """Tokens from ``start`` on in pieces met before."""
        found = 0
        for first, length, number in pieces.tolist():
            if number in self._pieces:
                found += max(length - max(start - first, 0), 0)
        self._pieces.update(pieces[:, 2].tolist())
        return found

    def _known_windows(self, tokens: Tokens, start: int) -> int:
        """Tokens from ``start`` on that are within windows met before."""
        begin = max(start - self.window + 1, 0)
        hashes = window_hashes(tokens[begin:], self.window)
        if not len(self._seen) or not len(hashes):
            return 0
        places = np.minimum(np.searchsorted(self._seen, hashes), len(self._seen) - 1)
        found = np.flatnonzero(self._seen[places] == hashes)
        edges = np.zeros(len(tokens) - begin + 1, np.int64)
        np.add.at(edges, found, 1)
        np.add.at(edges, found + self.window, -1)
        covered = np.cumsum(edges[:-1]) > 0
        return int(np.count_nonzero(covered[start - begin :]))

    def _remember(self, sequence: Prompt, start: int) -> None:
        """Windows that do not lie within what was known as a prefix."""
        tokens = sequence.tokens[max(start - self.window + 1, 0) :]
        self._seen = np.union1d(self._seen, window_hashes(tokens, self.window))


@dataclass(frozen=True, slots=True)
class Reachable:
    """Tokens of one prompt that could be reused, by class.

    Attributes:
        tokens: of the prompt.
        finite: by capacity in tokens.
    """

    tokens: int
    infinite: int
    finite: Mapping[int, int]
    any_position: int | None

    def columns(self, capacity: int) -> dict[str, int | None]:
        """A value for each of :data:`CEILINGS`."""
        at_most = (self.infinite, self.finite[capacity], self.any_position)
        return dict(zip(CEILINGS, at_most, strict=True))


def reachable(
    requests: Sequence[RenderedRequest], capacities: Iterable[int]
) -> list[Reachable]:
    """All ceilings for each request of one trace; capacities are in tokens."""
    foresight = Foresight(requests)
    finite = {size: list(foresight.reused(size)) for size in capacities}
    anywhere = AnyPosition()
    return [
        Reachable(
            tokens=s.tokens,
            infinite=infinite,
            finite={size: own[i] for size, own in finite.items()},
            any_position=anywhere.reused(s),
        )
        for i, (s, infinite) in enumerate(
            zip(requests, foresight.reused(INFINITE), strict=True)
        )
    ]


def any_position(requests: Iterable[RenderedRequest]) -> list[int] | None:
    """Tokens of each prompt that stood anywhere before; None if that is not known."""
    ceiling = AnyPosition()
    found = []
    for request in requests:
        reused = ceiling.reused(request)
        if reused is None:
            return None
        found.append(reused)
    return found


def _insert(tree: RadixTree[None], tokens: Tokens) -> None:
    """Make ``tokens`` a path that ends where a node ends."""
    last = tree.root
    for node, length in list(tree.walk(tokens)):
        last = node if length == len(node.tokens) else tree.split(node, length)
    if last.stop < len(tokens):
        tree.append(last, tokens[last.stop :], None)
