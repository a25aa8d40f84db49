"""Attributes every token of replayed requests: reused, or computed and why.

A strategy is driven as :class:`mlxlab.replay.simulator.Simulator` drives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from mlxlab.analysis.misses.blocks import Decode
from mlxlab.analysis.misses.causes import Cause
from mlxlab.analysis.misses.checkpoints import LostCheckpoints
from mlxlab.analysis.misses.classify import Change
from mlxlab.analysis.misses.evictions import Evictions, block_of, leading, restorable
from mlxlab.analysis.misses.horizon import ENDLESS, Horizon
from mlxlab.analysis.misses.predecessors import Predecessor, PredecessorIndex
from mlxlab.analysis.misses.prompt_diff import diff_prompts
from mlxlab.prompt import Role, Segment
from mlxlab.replay.commits import Commits
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import Plan, Strategy
from mlxlab.strategies.paged import Paged
from mlxlab.strategies.use import Use

__all__ = ["Attributor", "CauseSpan", "History", "RequestAttribution", "attribute"]


@dataclass(frozen=True, slots=True)
class CauseSpan:
    """Tokens ``[start, stop)`` of a prompt, in one block and with one cause.

    Attributes:
        cause: why the tokens were computed; None if they were restored.
        evictor: the request that evicted the tokens, or the checkpoint behind them.
        change: the change before the tokens that invalidated them.
        nearer: the placement that would have put a checkpoint behind them; empty if
            none would have.
    """

    start: int
    stop: int
    cause: Cause | None
    evictor: RenderedRequest | None = None
    change: Change | None = None
    label: str = ""
    role: Role = Role.UNKNOWN
    nearer: str = ""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class RequestAttribution:
    """The causes of all tokens of one request.

    Attributes:
        known: leading tokens that had been computed before, kept or not.
        predecessor: the request that the prompt was compared with.
        change: the first block that differs from the predecessor.
        parts: spans that cover the prompt in order.
    """

    request: RenderedRequest
    plan: Plan
    known: int
    predecessor: RenderedRequest | None
    change: Change | None
    parts: tuple[CauseSpan, ...]

    @property
    def missed(self) -> int:
        """Number of computed tokens, recomputed ones included."""
        return self.request.tokens_between(self.plan.reused, self.plan.length)


def attribute(
    requests: Iterable[RenderedRequest], strategy: Strategy, decode: Decode
) -> Iterator[RequestAttribution]:
    """Replay ``requests`` through a fresh strategy and attribute every token.

    Args:
        requests: in order of arrival.
        strategy: a strategy with nothing stored.
        decode: returns the text of ids.
    """
    attributor = Attributor(strategy, decode, History())
    commits: Commits[None] = Commits()
    for request in requests:
        commits.before(request)
        plan = strategy.plan(request.prompt)
        attribution = attributor.attribute(request, plan)
        commits.after(request, partial(attributor.commit, request, plan))
        yield attribution


class History:
    """What was computed so far, whether it was kept or not.

    Args:
        horizon: how much of it is remembered.
    """

    def __init__(self, horizon: Horizon = ENDLESS) -> None:
        self.horizon = horizon
        self.memory = Paged(block=1, capacity=horizon.tokens)
        self.predecessors = PredecessorIndex(horizon)

    def add(self, request: RenderedRequest, length: int, use: Use) -> None:
        """Remember what was computed of a request.

        Args:
            request: with its answer as far as it was computed.
            length: leading tokens that were stored.
            use: what was known of the request then.
        """
        self.memory.commit(request.computed.head(length), Plan(length))
        if not use.running:
            self.predecessors.add(request)


class Attributor:
    """Follows a strategy's plans and commits, and derives the causes from them.

    Args:
        strategy: a strategy with nothing stored.
        decode: returns the text of ids.
        history: what was computed, also under other strategies.
    """

    def __init__(self, strategy: Strategy, decode: Decode, history: History) -> None:
        self.strategy = strategy
        self.decode = decode
        self.history = history
        self.lost_checkpoints = (
            LostCheckpoints(strategy, history.horizon)
            if strategy.checkpoint_bytes
            else None
        )
        self.evictions = (
            self.lost_checkpoints.evictions
            if self.lost_checkpoints
            else Evictions(strategy, history.horizon)
        )
        self._committed: dict[int, RenderedRequest] = {}  # by number of the commit
        self._numbers = count()

    def attribute(self, request: RenderedRequest, plan: Plan) -> RequestAttribution:
        """Attribute every token of a request that has just been planned.

        Args:
            request: with or without its answer.
            plan: as it was carried out.
        """
        known = restorable(self.history.memory, request.prompt.tokens)
        predecessor = self.history.predecessors.find(request)
        change, spans = self._compare(request, known, predecessor)
        found = self._resumable_parts if self.lost_checkpoints else self._known_parts
        parts = [*found(request, plan, known), *spans]
        return RequestAttribution(
            request,
            plan,
            known,
            predecessor.request if predecessor else None,
            change,
            tuple(_split(_with_spans(parts, plan), request.prompt.segments)),
        )

    def commit(
        self, request: RenderedRequest, plan: Plan, length: int, use: Use
    ) -> None:
        """Store what was computed of a request.

        Args:
            request: with its answer as far as it was computed.
            plan: that the strategy made for it.
            length: leading tokens that are stored.
            use: what is known of the request now.
        """
        computed = request.computed.head(length)
        commit = self.strategy.commit(computed, plan.head(length), use)
        number = self._name(request)
        if self.lost_checkpoints:
            self.lost_checkpoints.note(number, request, computed, plan, commit, use)
        else:
            lost = commit.evicted + len(commit.disk.erase)
            self.evictions.note(number, computed.tokens, lost)
        self.history.add(request, length, use)

    def _name(self, request: RenderedRequest) -> int:
        """Give a commit a number, by which its request can be named."""
        number, most = next(self._numbers), self.history.horizon.requests
        endless = self.history.horizon is ENDLESS
        self._committed[number] = request if endless else request.without_tokens()
        self._committed.pop(number - most, None)
        return number

    def _known_parts(
        self, request: RenderedRequest, plan: Plan, known: int
    ) -> Iterator[CauseSpan]:
        """Yield spans of the tokens that were computed before at their position."""
        last = min(known, len(request.prompt) - 1)
        restored = min(next(plan.gaps)[0], last)
        matched = min(max(leading(self.strategy, plan), restored), last)
        block = block_of(self.strategy)
        whole = max(last // block * block, matched)
        yield CauseSpan(0, restored, None)
        yield CauseSpan(restored, matched, Cause.MINIMUM)
        for start, stop, by in self.evictions.find(
            request.prompt.tokens, matched, whole
        ):
            if by is None:
                yield CauseSpan(start, stop, Cause.NOT_KEPT)
            else:
                yield CauseSpan(start, stop, Cause.EVICTED, self._committed.get(by))
        yield CauseSpan(whole, last, Cause.BLOCK)
        yield CauseSpan(last, max(known, last), Cause.LAST)

    def _resumable_parts(
        self, request: RenderedRequest, plan: Plan, known: int
    ) -> Iterator[CauseSpan]:
        """Yield the same where the model resumes at checkpoints only."""
        assert self.lost_checkpoints is not None
        tokens, last = request.prompt.tokens, min(known, len(request.prompt) - 1)
        restored = min(plan.reused, last)
        stored = min(max(leading(self.strategy, plan), restored), last)
        reused, matched = self.lost_checkpoints.reuse(request.prompt)
        least = stored if stored >= self.lost_checkpoints.minimum else restored
        behind = min(max(least, reused), last)
        held = min(max(behind, stored, matched), last)
        yield CauseSpan(0, restored, None)
        yield from self._unresumed(request, restored, stored, behind)
        yield CauseSpan(behind, held, Cause.MINIMUM)
        dropped = self.lost_checkpoints.lost(tokens, last)
        for start, stop, by in self.evictions.find(tokens, held, last):
            for a, b, number in _runs(dropped, start, stop):
                evictor = number if number >= 0 else by
                if evictor is None:
                    yield CauseSpan(a, b, Cause.NOT_KEPT)
                else:
                    yield CauseSpan(a, b, Cause.EVICTED, self._committed.get(evictor))
        yield CauseSpan(last, max(known, last), Cause.LAST)

    def _unresumed(
        self, request: RenderedRequest, start: int, stored: int, stop: int
    ) -> Iterator[CauseSpan]:
        """Yield spans of tokens that a model without checkpoints would reuse.

        Where tokens went with their checkpoint, they were evicted.
        """
        if start >= stop:
            return
        assert self.lost_checkpoints is not None
        dropped = self.lost_checkpoints.lost(request.prompt.tokens, stop)
        nearer = self.lost_checkpoints.nearer(request, start, stop)
        for a, b, by in _runs(dropped, start, stop):
            evictor = self._committed.get(by) if by >= 0 else None
            kept = b if by < 0 else min(max(stored, a), b)
            yield CauseSpan(a, kept, Cause.NO_CHECKPOINT, evictor, nearer=nearer)
            yield CauseSpan(kept, b, Cause.EVICTED, evictor)

    def _compare(
        self, request: RenderedRequest, known: int, predecessor: Predecessor | None
    ) -> tuple[Change | None, list[CauseSpan]]:
        """Return the first change, and spans of tokens new at their position."""
        length = len(request.prompt)
        if known >= length:
            return None, []
        hashed = request.unit > 1
        if predecessor and hashed and predecessor.request.session == request.session:
            return None, list(_chained_spans(request, known, predecessor))
        if predecessor is None or hashed:
            return None, [CauseSpan(known, length, _first_cause(request))]
        found = diff_prompts(
            request.prompt,
            predecessor,
            same_session=predecessor.request.session == request.session,
            decode=self.decode,
        )
        parts = [
            CauseSpan(
                max(span.start, known),
                span.stop,
                span.change.cause if span.change else Cause.FRESH,
                change=span.change,
            )
            for span in found.spans
            if span.stop > known
        ]
        return next(iter(found.changes), None), parts


def _runs(
    values: NDArray[np.int64], start: int, stop: int
) -> Iterator[tuple[int, int, int]]:
    """Yield the runs of equal values within ``[start, stop)``."""
    own = values[start:stop]
    edges = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), len(own)]
    for a, b in pairwise(edges):
        if b > a:
            yield start + a, start + b, int(own[a])


def _chained_spans(
    request: RenderedRequest, known: int, predecessor: Predecessor
) -> Iterator[CauseSpan]:
    """Yield spans of a prompt of chained hashes.

    Each hash covers all tokens before it, so no hash after a change is known. Tokens up
    to the length of the earlier prompt count as changed; only later ones are new.
    """
    length, before = len(request.prompt), len(predecessor.request.prompt) - 1
    replaced = min(max(before, known), length)
    static = known < request.prompt.static_length
    cut = Cause.CUT if length <= before else Cause.EDITED
    yield CauseSpan(known, replaced, Cause.SYSTEM if static else cut)
    yield CauseSpan(replaced, length, Cause.FRESH)


def _first_cause(request: RenderedRequest) -> Cause:
    """Return the cause for a request without a predecessor."""
    if request.use.side:
        return Cause.SIDE
    return Cause.AGENT if "/" in request.session else Cause.SESSION


def _with_spans(parts: Iterable[CauseSpan], plan: Plan) -> Iterator[CauseSpan]:
    """Split off the tokens that are restored after the prefix."""
    gaps = list(plan.gaps)
    for part in parts:
        position = part.start
        for start, stop in gaps:
            start, stop = max(start, position), min(stop, part.stop)
            if start >= stop:
                continue
            if start > position:
                yield CauseSpan(position, start, None)
            yield replace(part, start=start, stop=stop)
            position = stop
        if position < part.stop:
            yield CauseSpan(position, part.stop, None)


def _split(
    parts: Iterable[CauseSpan], segments: Sequence[Segment]
) -> Iterator[CauseSpan]:
    """Cut spans where blocks end, and label them."""
    for part in parts:
        for segment in segments:
            start, stop = max(part.start, segment.start), min(part.stop, segment.stop)
            if start < stop:
                yield replace(
                    part, start=start, stop=stop, label=segment.label, role=segment.role
                )
