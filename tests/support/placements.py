"""Placements of checkpoints: the best one by trying all, and simple ones online."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from mlxlab.replay.requests import RenderedRequest

__all__ = ["PLACEMENTS", "Memory", "best_placement", "replay"]

Ids: TypeAlias = tuple[int, ...]
Held: TypeAlias = frozenset[Ids]
"""The prefixes whose checkpoints are held, with their keys and values."""

Placement: TypeAlias = Callable[[Ids, Sequence[Ids]], Iterable[int]]
"""Returns the positions to capture of a sequence, after earlier sequences."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a token, of a checkpoint, and of both together."""

    token: int
    checkpoint: int
    capacity: int

    def fits(self, held: Iterable[Ids]) -> bool:
        checkpoints = list(held)
        tokens = {ids[: i + 1] for ids in checkpoints for i in range(len(ids))}
        size = self.token * len(tokens) + self.checkpoint * len(checkpoints)
        return size <= self.capacity


def best_placement(requests: Sequence[RenderedRequest], memory: Memory) -> int:
    """Return the most tokens that can be reused, trying all choices.

    Each request may resume at any held prefix of its prompt, or compute all of it, and
    then keep whatever fits of what was held and of what it computed.
    """
    sequences = [_sequences(request) for request in requests]
    wanted: list[set[Ids]] = [set()]  # prefixes that later requests ask for
    for asked, _ in reversed(sequences):
        wanted.append(wanted[-1] | {asked[:p] for p in range(1, len(asked) + 1)})
    wanted.reverse()

    @cache
    def choices(there: Held) -> list[Held]:
        """All that can be kept, without what leaves room for more."""
        found: set[Held] = {frozenset()}
        for ids in there:
            found |= {own | {ids} for own in found if memory.fits(own | {ids})}
        return [own for own in found if not any(own < more for more in found)]

    @cache
    def best(i: int, held: Held) -> int:
        if i == len(sequences):
            return 0
        asked, made = sequences[i]
        starts = [0, *(len(ids) for ids in held if asked[: len(ids)] == ids)]
        totals = []
        for start in starts:
            computed = {made[:p] for p in range(start + 1, len(made) + 1)}
            there = frozenset((held | computed) & wanted[i + 1])
            rest = max(best(i + 1, own) for own in choices(there))
            totals.append(start + rest)
        return max(totals)

    return best(0, frozenset())


def replay(
    placement: Placement, requests: Sequence[RenderedRequest], memory: Memory
) -> int:
    """Return the tokens reused online; the least recently used are evicted."""
    held: dict[Ids, None] = {}  # the least recently used first
    earlier: list[Ids] = []
    reused = 0
    for request in requests:
        asked, made = _sequences(request)
        start = max((len(h) for h in held if asked[: len(h)] == h), default=0)
        reused += start
        captured = {p for p in placement(made, earlier) if start < p <= len(made)}
        for position in sorted(captured | ({start} - {0})):
            held.pop(made[:position], None)
            held[made[:position]] = None
        while not memory.fits(held):
            del held[next(iter(held))]
        earlier.append(made)
    return reused


def _every(step: int) -> Placement:
    return lambda made, earlier: range(step, len(made) + 1, step)


def _end(made: Ids, earlier: Sequence[Ids]) -> Iterable[int]:
    return [len(made)]


def _branches(made: Ids, earlier: Sequence[Ids]) -> Iterable[int]:
    """The ends of common prefixes with earlier sequences, and the end."""
    for other in earlier:
        pairs = enumerate(zip(made, other, strict=False))
        yield next((i for i, (a, b) in pairs if a != b), min(len(made), len(other)))
    yield len(made)


PLACEMENTS: dict[str, Placement] = {
    "every token": _every(1),
    "every 4": _every(4),
    "end": _end,
    "branches": _branches,
}


def _sequences(request: RenderedRequest) -> tuple[Ids, Ids]:
    """Return the tokens that a request can reuse, and those that it computes."""
    asked = tuple(request.prompt.tokens[:-1].tolist())
    return asked, tuple(request.computed.tokens.tolist())
