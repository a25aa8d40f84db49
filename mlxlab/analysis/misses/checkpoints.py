"""Which tokens lie behind the last checkpoint on their path, and what was in force.

A twin of the strategy replays the same requests for a model that can be cut at any
token. What the twin would reuse, and the strategy does not, lacks a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlxlab.analysis.misses.evictions import Evictions, leading
from mlxlab.analysis.misses.horizon import ENDLESS, Horizon
from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import Commit, Handle, Limit, Plan, Strategy
from mlxlab.strategies.placements import Combined, parse_placement
from mlxlab.strategies.resumption import ID_BYTES
from mlxlab.strategies.use import Use

__all__ = ["LostCheckpoints"]

#: Places to recommend, those that take few checkpoints first.
_WORDS = (
    *("prompt", "answer", "system", "tools", "environment"),
    *("branches", "users", "messages", "every512"),
)

#: Share of the lost tokens that a word has to save beyond those in front of it.
_WORTH = 0.25


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence that no other sequence extends.

    Attributes:
        number: of the latest request that computed it.
        asked: that request's prompt.
        match: leading tokens of the prompt that were stored when it was planned.
        lost: by position, the commit that dropped a checkpoint there.
    """

    tokens: Tokens
    number: int = 0
    asked: Prompt = field(default_factory=lambda: Prompt.of(()))
    match: int = 0
    lost: dict[int, int] = field(default_factory=dict)


class LostCheckpoints:
    """Follows the checkpoints of a strategy, beside its twin that needs none.

    Args:
        strategy: a fresh one, for a model with checkpoints.
        horizon: how many sequences are followed.

    Attributes:
        evictions: what the twin evicted.
    """

    def __init__(self, strategy: Strategy, horizon: Horizon = ENDLESS) -> None:
        self._strategy = strategy
        self._twin = _cut_anywhere(strategy)
        self._horizon = horizon
        self.evictions = Evictions(self._twin, horizon)
        self._sequences: list[_Sequence] = []  # the latest last
        self._held: dict[Handle, tuple[_Sequence, int]] = {}

    @property
    def minimum(self) -> int:
        """Tokens below which the strategy restores nothing."""
        name = self._strategy.limits.get(Limit.MINIMUM)
        return int(self._strategy.parameters[name]) if name else 0

    def reuse(self, prompt: Prompt) -> tuple[int, int]:
        """Return what the twin restores of a prompt, and what it has in memory."""
        plan = self._twin.preview(prompt)
        return plan.reused, leading(self._twin, plan)

    def note(
        self,
        by: int,
        request: RenderedRequest,
        computed: Prompt,
        plan: Plan,
        commit: Commit,
        use: Use,
    ) -> None:
        """Record commit number ``by`` of the strategy, and let the twin follow.

        Args:
            by: number of the commit.
            request: that was planned.
            computed: what of it was stored.
            plan: of the request.
            commit: what the strategy changed.
            use: what is known of the request.
        """
        own = self._sequence_of(computed.tokens)
        own.number, own.asked = by, request.prompt
        own.match = leading(self._strategy, plan)
        for handle in commit.forget:
            sequence, position = self._held.pop(handle)
            sequence.lost[position] = by
        for keep in commit.keep:
            self._held[keep.handle] = own, keep.position
        plan = self._twin.preview(request.prompt)
        evicted = self._twin.commit(computed, plan, use)
        self.evictions.note(by, computed.tokens, evicted.evicted)

    def lost(self, tokens: Tokens, stop: int) -> NDArray[np.int64]:
        """Return which commit dropped the last checkpoint behind each position.

        Args:
            tokens: of a prompt.
            stop: end of the positions.

        Returns:
            Numbers of commits, shape ``[stop]``; -1 where there was no checkpoint.
        """
        by = np.full(stop, -1, np.int64)
        for sequence in self._sequences:
            shared = min(common_prefix(sequence.tokens, tokens), stop)
            for position, number in sequence.lost.items():
                if position <= shared:
                    by[:position] = np.maximum(by[:position], number)
        return by

    def nearer(self, request: RenderedRequest, start: int, stop: int) -> str:
        """Return the placement that would have put a checkpoint nearer.

        The placements are asked on the request that shares most with this one.

        Args:
            request: the request.
            start: what it resumes from.
            stop: the last position that it could resume from.

        Returns:
            A word of placements; the strategy's own, if that placed a checkpoint there
            which is gone; empty if no placement would have put one there.
        """
        tokens = request.prompt.tokens
        shared = {s: common_prefix(s.tokens, tokens) for s in self._sequences}
        if not shared:
            return ""
        source = max(shared, key=lambda s: (shared[s], s.number))
        stop = min(stop, shared[source])
        own = str(self._strategy.parameters.get("checkpoints", ""))
        chosen, reached = "", start
        for word in (own, *_WORDS) if own else _WORDS:
            places = _places(parse_placement(word, request.unit), source)
            fit = [p for p in places if max(start + 1, self.minimum) <= p <= stop]
            if fit and max(fit) - reached > _WORTH * (stop - start):
                chosen, reached = word, max(fit)
        return chosen

    def _sequence_of(self, tokens: Tokens) -> _Sequence:
        """Return the sequence that holds ``tokens``, made or extended if need be."""
        found = _Sequence(tokens)
        for sequence in self._sequences:
            shared = common_prefix(sequence.tokens, tokens)
            if shared in (len(sequence.tokens), len(tokens)):
                found = sequence
                self._sequences.remove(sequence)
                break
        if len(found.tokens) < len(tokens):
            found.tokens = tokens
        self._sequences.append(found)
        lengths = [len(s.tokens) for s in self._sequences]
        del self._sequences[: self._horizon.beyond(lengths)]
        return found


def _cut_anywhere(strategy: Strategy) -> Strategy:
    """Return a fresh strategy of this kind, for a model that needs no checkpoints."""
    ours = {"windows", "checkpoints", "share", "disk"}
    given = {k: v for k, v in strategy.parameters.items() if k not in ours}
    return type(strategy)(token_bytes=strategy.token_bytes or ID_BYTES, **given)


def _places(placement: Combined, source: _Sequence) -> list[int]:
    places = placement.places(source.asked, source.match)
    # The request was the last to extend the sequence, or is a part of it.
    return [*places, len(source.tokens)] if placement.answer else places
