"""Upper bounds on reuse: the most that any strategy of a class could reuse.

Three bounds: exact reuse with unlimited memory, exact reuse with limited memory and
known future requests (Belady's MIN), and reuse of content at any position. For models
that resume at checkpoints these are bounds with free checkpoints at every token; a
fourth is :class:`~mlxlab.replay.checkpoint_bounds.BestPlacement`. Bounds are simulated,
never served.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.accesses import Accesses
from mlxlab.replay.checkpoint_bounds import BestPlacement
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.workload import NumberedRequest
from mlxlab.strategies.paged import Paged
from mlxlab.strategies.sequences.hashing import window_hashes

__all__ = [
    "BOUNDS",
    "PLACEMENT",
    "STORING",
    "UNLIMITED",
    "Bounds",
    "FirstTokenCosts",
    "OptimalMemory",
    "PositionIndependent",
    "UnlimitedMemory",
    "find_bounds",
    "position_independent",
    "tabulate_bounds",
]

#: Names of the bounds, from the strictest class of strategies to the widest.
BOUNDS = ("unlimited", "optimal", "position_independent")

#: The bound that is added to them for models that resume at checkpoints.
PLACEMENT = "placement"

#: The bound of policies that store every sequence in full, see
#: :meth:`OptimalMemory.reused`.
STORING = "storing"

#: A capacity that no trace fills.
UNLIMITED = 1 << 62

_SECONDS = {"ttft_mean_s": "float64", "ttft_median_s": "float64"}


class UnlimitedMemory(Paged):
    """Keeps every sequence and restores the longest common prefix with any of them.

    It has neither a limit nor blocks: an upper bound for every prefix strategy.
    """

    name = "unlimited"
    summary = (
        "unlimited memory, blocks of one token: the most that exact reuse can give"
    )

    block = 1
    capacity = UNLIMITED


class OptimalMemory:
    """Limited memory that always evicts the tokens whose next use is furthest away.

    This is Belady's MIN, which no policy beats at the same capacity
    (doi:10.1147/sj.52.0078). Consecutive tokens that are always requested together form
    one node. A parent's next use never comes after its child's, so the memory always
    holds prefixes.

    Args:
        requests: all requests, in order; read once, by the constructor.
        block: ids that are stored and evicted together.
    """

    def __init__(self, requests: Iterable[RenderedRequest], block: int = 1) -> None:
        self.accesses = Accesses.of(requests, block)
        self.block = block

    @property
    def tokens(self) -> list[int]:
        """Prompt tokens of each request."""
        return [access.tokens for access in self.accesses.requests]

    @property
    def stored_tokens(self) -> int:
        """Tokens that unlimited memory holds after the last request."""
        return sum(self.accesses.lengths) * self.accesses.unit

    def reused(self, capacity: int, *, refuses: bool = True) -> Iterator[int]:
        """Return the reusable tokens of each request.

        Args:
            capacity: in tokens.
            refuses: whether tokens of the newest sequence may go too, so that some are
                not stored at all. Without it all of that is stored that fits, and the
                rest goes by the next use: the most that policies which never refuse
                could reuse, as the least recently used.
        """
        unit = self.accesses.unit
        whole = capacity // unit // self.block * self.block
        held = self._held(whole, refuses)
        for ids, tokens in zip(held, self.tokens, strict=True):
            yield min(ids * unit, tokens - 1)

    def _held(self, capacity: int, refuses: bool) -> Iterator[int]:
        """Return the ids of each prompt that are held, with a capacity in ids."""
        lengths, starts = self.accesses.lengths, self.accesses.starts
        uses = self._uses()
        held: dict[int, int] = {}  # tokens of a node, the first of them
        total = 0
        line: list[tuple[float, int, int]] = []  # in order of eviction
        for access in self.accesses.requests:
            yield self._prefix(access.asked, held)
            for node in access.asked:
                uses[node].pop()
            newest = access.made
            if not refuses:
                newest = tuple(node for node in newest if starts[node] < capacity)
            for node in newest:
                length = lengths[node]
                if not refuses:
                    length = min(length, capacity - starts[node])
                total += length - held.get(node, 0)
                held[node] = length
                # Of tokens with the same next use the last are evicted first.
                next_use = uses[node][-1]
                heapq.heappush(line, (-next_use, -starts[node], node))
            staying = frozenset[int]() if refuses else frozenset(newest)
            spared = []
            while total > capacity:
                next_use, _, node = entry = heapq.heappop(line)
                if -next_use != uses[node][-1] or node not in held:
                    continue  # the node was used after this entry was made
                if node in staying:
                    spared.append(entry)
                    continue
                gone = min(held[node], total - capacity)
                total -= gone
                held[node] -= gone
                if held[node]:
                    heapq.heappush(line, entry)
                else:
                    del held[node]
            for entry in spared:
                heapq.heappush(line, entry)

    def _uses(self) -> list[list[float]]:
        """Return the times at which each node is requested, the next one last."""
        uses: list[list[float]] = [[float("inf")] for _ in self.accesses.lengths]
        for time, access in reversed(list(enumerate(self.accesses.requests))):
            for node in access.asked:
                uses[node].append(time)
        return uses

    def _prefix(self, path: Iterable[int], held: Mapping[int, int]) -> int:
        length = 0
        for node in path:
            length += held.get(node, 0)
            if held.get(node, 0) < self.accesses.lengths[node]:
                break
        return length


class PositionIndependent:
    """Reuse of content at any position: a bound for strategies that move keys.

    A token counts if it lies in the longest known prefix, or in ``window`` consecutive
    tokens that an earlier prompt or answer contains at any position. In hashed traces
    pieces of content take the place of windows.

    Args:
        window: equal consecutive tokens; shorter matches are often chance.
    """

    def __init__(self, window: int = 64) -> None:
        self.window = window
        self._memory = UnlimitedMemory()
        self._windows = _Hashes()
        self._pieces: set[int] = set()

    def reused(self, request: RenderedRequest) -> int | None:
        """Return the reusable tokens of the request's prompt, and remember the request.

        None for a hashed request without hashes of content.
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
        """Return the tokens from ``start`` on that lie in known pieces."""
        found = 0
        for first, length, number in pieces.tolist():
            if number in self._pieces:
                found += max(length - max(start - first, 0), 0)
        self._pieces.update(pieces[:, 2].tolist())
        return found

    def _known_windows(self, tokens: Tokens, start: int) -> int:
        """Return the tokens from ``start`` on that lie in known windows."""
        begin = max(start - self.window + 1, 0)
        hashes = window_hashes(tokens[begin:], self.window)
        found = np.flatnonzero(self._windows.holds(hashes))
        edges = np.zeros(len(tokens) - begin + 1, np.int64)
        np.add.at(edges, found, 1)
        np.add.at(edges, found + self.window, -1)
        covered = np.cumsum(edges[:-1]) > 0
        return int(np.count_nonzero(covered[start - begin :]))

    def _remember(self, sequence: Prompt, start: int) -> None:
        """Remember the windows that do not lie within the known prefix."""
        tokens = sequence.tokens[max(start - self.window + 1, 0) :]
        self._windows.add(window_hashes(tokens, self.window))


class _Hashes:
    """A set of hashes: sorted arrays, each at least twice as long as the next.

    One sorted array would be written again at each addition, and Python's own set takes
    some ten times the memory.
    """

    def __init__(self) -> None:
        self._sorted: list[NDArray[np.uint64]] = []

    def add(self, hashes: NDArray[np.uint64]) -> None:
        new = np.unique(hashes)
        while self._sorted and len(self._sorted[-1]) < 2 * len(new):
            new = np.union1d(self._sorted.pop(), new)
        self._sorted.append(new)

    def holds(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return whether each hash is in the set."""
        found = np.zeros(len(hashes), np.bool_)
        for own in self._sorted:
            places = np.searchsorted(own, hashes)
            within = places < len(own)
            found[within] |= own[places[within]] == hashes[within]
        return found


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one request, in tokens.

    Attributes:
        tokens: prompt tokens.
        unlimited: reusable with unlimited memory.
        optimal: reusable under Belady's MIN, by capacity in bytes.
        position_independent: reusable at any position; None if the trace does not say.
        placement: reusable under the best placement of checkpoints, by capacity in
            bytes; empty for a model that needs none.
    """

    tokens: int
    unlimited: int
    optimal: Mapping[int, int]
    position_independent: int | None
    placement: Mapping[int, int] = field(default_factory=dict)

    def at(self, capacity: int) -> dict[str, int | None]:
        """Return a value for each of :data:`BOUNDS`, at a capacity in bytes.

        And for :data:`PLACEMENT`, for a model that resumes at checkpoints.
        """
        values = (self.unlimited, self.optimal[capacity], self.position_independent)
        placed = {PLACEMENT: self.placement[capacity]} if self.placement else {}
        return {**dict(zip(BOUNDS, values, strict=True)), **placed}


class FirstTokenCosts(Protocol):
    """Seconds to the first token on some machine."""

    def ttft_s(self, reused: int, tokens: int) -> float:
        """Return the seconds to the first token of a prompt with a reused prefix."""
        ...


def find_bounds(
    requests: Iterable[RenderedRequest],
    capacities: Iterable[int],
    layout: CacheLayout,
) -> tuple[list[Bounds], int]:
    """Find the bounds of each request of one workload.

    Args:
        requests: the workload; iterated over twice.
        capacities: for the optimal bound and the best placement, in bytes.
        layout: what the model keeps. The bound of placements is left out for a model
            that can be cut anywhere.

    Returns:
        The bounds of each request, and the bytes that unlimited memory ends up with.
    """
    token_bytes, checkpoint_bytes = layout.token_bytes(), layout.checkpoint_bytes()
    memory = OptimalMemory(requests)
    unlimited = list(memory.reused(UNLIMITED))
    # A model of recurrent state alone keeps nothing for a token.
    room = {
        size: size // token_bytes if token_bytes else UNLIMITED for size in capacities
    }
    optimal = {size: list(memory.reused(tokens)) for size, tokens in room.items()}
    anywhere = position_independent(requests)
    placement: dict[int, list[int]] = {}
    if checkpoint_bytes:
        best = BestPlacement(memory.accesses, token_bytes or 1, checkpoint_bytes)
        # Tokens that cost nothing cost a byte that is there for each.
        more = 0 if token_bytes else memory.stored_tokens
        placement = {
            # Rounding aside it never exceeds the bound of free checkpoints.
            size: min(best.reused(size + more), own, key=sum)
            for size, own in optimal.items()
        }
    found = [
        Bounds(
            tokens=tokens,
            unlimited=unlimited[i],
            optimal={size: own[i] for size, own in optimal.items()},
            position_independent=anywhere[i] if anywhere else None,
            placement={size: own[i] for size, own in placement.items()},
        )
        for i, tokens in enumerate(memory.tokens)
    ]
    return found, memory.stored_tokens * token_bytes


def tabulate_bounds(
    found: Sequence[Bounds], unlimited_bytes: int, costs: FirstTokenCosts | None = None
) -> pd.DataFrame:
    """Add up the bounds of all requests.

    Args:
        found: one per request.
        unlimited_bytes: the memory that the unlimited bound fills.
        costs: estimates seconds; without it they are missing.

    Returns:
        One row per bound, and per capacity for ``optimal`` and ``placement``. Columns:
        ``bound`` (one of :data:`BOUNDS`, or :data:`PLACEMENT` for a model that resumes
        at checkpoints), ``memory`` (bytes; missing for ``position_independent``),
        ``prompt_tokens``, ``reused_tokens``, ``reused`` (share of the prompt tokens),
        ``ttft_mean_s`` and ``ttft_median_s`` (estimated seconds to the first token).
        A bound that the trace does not determine has no row, nor have ``optimal`` and
        ``placement`` at a capacity without a limit.
    """
    sizes = sorted({s for own in found for s in own.optimal if s < UNLIMITED})
    rows: list[tuple[str, int | None, list[int]]] = [
        ("unlimited", unlimited_bytes, [own.unlimited for own in found]),
        *(("optimal", size, [own.optimal[size] for own in found]) for size in sizes),
        *(
            (PLACEMENT, size, [own.placement[size] for own in found])
            for size in sizes
            if all(own.placement for own in found)
        ),
    ]
    anywhere = [
        own.position_independent
        for own in found
        if own.position_independent is not None
    ]
    if len(anywhere) == len(found):
        rows.append(("position_independent", None, anywhere))
    tokens = [own.tokens for own in found]
    table = pd.DataFrame([_row(*row, tokens, costs) for row in rows])
    memory = pd.array([memory for _, memory, _ in rows], dtype="Int64")
    return table.assign(memory=memory).astype(_SECONDS)


def _row(
    name: str,
    memory: int | None,
    reused: Sequence[int],
    tokens: Sequence[int],
    costs: FirstTokenCosts | None,
) -> dict[str, Any]:
    pairs = zip(reused, tokens, strict=True)
    seconds = [costs.ttft_s(*pair) for pair in pairs] if costs else []
    return {
        "bound": name,
        "memory": memory,
        "prompt_tokens": sum(tokens),
        "reused_tokens": sum(reused),
        "reused": sum(reused) / sum(tokens),
        "ttft_mean_s": mean(seconds) if seconds else None,
        "ttft_median_s": median(seconds) if seconds else None,
    }


def position_independent(requests: Iterable[RenderedRequest]) -> list[int] | None:
    """Return each request's tokens reusable at any position; None if unknown."""
    bound = PositionIndependent()
    found = []
    for request in requests:
        reused = bound.reused(request)
        if reused is None:
            return None
        found.append(reused)
    return found
