"""Which commit evicted which tokens from a strategy's memory.

After each commit the strategy is asked how much of every sequence it could restore. Of
a model with checkpoints that is asked of a twin, see
:mod:`mlxlab.analysis.misses.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from mlxlab.analysis.misses.horizon import ENDLESS, Horizon
from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.strategies import Limit, Plan, Strategy

__all__ = ["Evictions", "block_of", "leading", "restorable"]

#: No tokenizer has this id, so no stored sequence continues with it.
_NO_TOKEN = -1


def restorable(strategy: Strategy, tokens: Tokens) -> int:
    """Return the leading positions of a sequence in memory, ignoring the minimum."""
    plan = strategy.preview(Prompt(np.append(tokens, np.int32(_NO_TOKEN))))
    return leading(strategy, plan)


def leading(strategy: Strategy, plan: Plan) -> int:
    """Return the leading positions that are in memory in their old places."""
    if strategy.exact:
        return max(plan.best_match, plan.reused)
    length = 0
    for span in plan.spans:
        if span.moved or span.target > length:
            break
        length += span.length
    return length


def block_of(strategy: Strategy) -> int:
    """Return the tokens that a strategy stores and restores at a time."""
    name = strategy.limits.get(Limit.BLOCK)
    return int(strategy.parameters[name]) if name else 1


@dataclass(frozen=True, slots=True)
class _Loss:
    """Positions ``[start, stop)`` that commit number ``by`` made unrestorable."""

    start: int
    stop: int
    by: int


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence that no other sequence extends, and its length in memory."""

    tokens: Tokens
    held: int = 0
    losses: list[_Loss] = field(default_factory=list)

    def update(self, held: int, by: int) -> None:
        if held < self.held:
            self.losses.append(_Loss(held, self.held, by))
        elif held > self.held:
            self.losses = [
                _Loss(max(loss.start, held), loss.stop, loss.by)
                for loss in self.losses
                if loss.stop > held
            ]
        self.held = held


class Evictions:
    """Records evictions, by commit.

    Only sequences that no later one extends are followed: a shared prefix is lost in
    all of them at the same time.

    Args:
        strategy: a fresh one.
        horizon: how many sequences are followed.
    """

    def __init__(self, strategy: Strategy, horizon: Horizon = ENDLESS) -> None:
        self._strategy = strategy
        self._block = block_of(strategy)
        self._horizon = horizon
        self._sequences: list[_Sequence] = []  # the latest last

    def note(self, by: int, tokens: Tokens, evicted: int) -> None:
        """Record commit number ``by`` of ``tokens``, which evicted this many."""
        shared = {s: common_prefix(s.tokens, tokens) for s in self._sequences}
        own = next((s for s in shared if shared[s] == len(s.tokens)), None)
        longer = (s for s in shared if shared[s] == len(tokens))
        if own is not None:
            own.tokens = tokens
            self._refresh(own)
        elif (whole := next(longer, None)) is not None:
            self._refresh(whole)
        else:
            own = _Sequence(tokens)
            self._sequences.append(own)
        lengths = [len(s.tokens) for s in self._sequences]
        del self._sequences[: self._horizon.beyond(lengths)]
        for sequence in self._sequences:
            lost = evicted > 0 and sequence.held > 0
            gained = shared.get(sequence, 0) > sequence.held
            if lost or gained or sequence is own:
                held = restorable(self._strategy, sequence.tokens)
                sequence.update(held, by)

    def _refresh(self, sequence: _Sequence) -> None:
        """Make a sequence the latest."""
        self._sequences.remove(sequence)
        self._sequences.append(sequence)

    def find(
        self, tokens: Tokens, start: int, stop: int
    ) -> Iterator[tuple[int, int, int | None]]:
        """Yield parts of ``[start, stop)`` and the commit that last evicted each.

        The commit is None where a part was never restorable.
        """
        by = np.full(max(stop - start, 0), -1, np.int64)
        for sequence in self._sequences:
            shared = min(common_prefix(sequence.tokens, tokens), stop)
            shared = shared // self._block * self._block  # whole blocks only
            for loss in sequence.losses:
                lost = slice(max(loss.start - start, 0), max(loss.stop - start, 0))
                lost = slice(lost.start, min(lost.stop, max(shared - start, 0)))
                by[lost] = np.maximum(by[lost], loss.by)
        edges = [0, *(np.flatnonzero(np.diff(by)) + 1).tolist(), len(by)]
        for a, b in pairwise(edges):
            if b > a:
                yield start + a, start + b, int(by[a]) if by[a] >= 0 else None
