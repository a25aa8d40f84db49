"""For every token of replayed requests: reused, or computed and why.

Drives a strategy as :class:`mlxlab.replay.simulator.Simulator` does. Knows
nothing of traces and models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mlxlab.analysis.misses.blocks import Decode
from mlxlab.analysis.misses.causes import Cause
from mlxlab.analysis.misses.classify import Change
from mlxlab.analysis.misses.evictions import Evictions, block_of, leading, restorable
from mlxlab.analysis.misses.predecessors import Reference, References
from mlxlab.analysis.misses.prompt_diff import align
from mlxlab.prompt import Role, Segment
from mlxlab.replay.bounds import InfiniteMemory
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import Plan, Strategy

__all__ = ["Account", "Fate", "attribute"]


@dataclass(frozen=True, slots=True)
class Fate:
    """Tokens ``[start, stop)`` of a prompt that share block and fate.

    Attributes:
        cause: why they were computed; None if they were restored.
        evictor: the request that pushed them out of memory.
        change: of a block in front of them, which made them useless.
    """

    start: int
    stop: int
    cause: Cause | None
    evictor: RenderedRequest | None = None
    change: Change | None = None
    label: str = ""
    role: Role = Role.UNKNOWN

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the tokens of one request.

    Attributes:
        known: leading tokens that had been computed before, whoever keeps them.
        reference: the request that the prompt was compared with.
        change: the first block that is not as it was there.
        parts: cover the prompt in order.
    """

    request: RenderedRequest
    plan: Plan
    known: int
    reference: RenderedRequest | None
    change: Change | None
    parts: tuple[Fate, ...]

    @property
    def missed(self) -> int:
        """Tokens computed, the recomputed ones included."""
        return self.request.tokens_between(self.plan.reused, self.plan.length)


def attribute(
    requests: Iterable[RenderedRequest], strategy: Strategy, decode: Decode
) -> Iterator[Account]:
    """Replay ``requests`` through a fresh strategy and account for every token.

    Args:
        requests: in order of arrival.
        strategy: empty.
        decode: text of ids.
    """
    desk = _Desk(strategy, decode)
    for request in requests:
        yield desk.account(request)


class _Desk:
    """Keeps the books that blame is taken from."""

    def __init__(self, strategy: Strategy, decode: Decode) -> None:
        self.strategy = strategy
        self.decode = decode
        self.memory = InfiniteMemory()
        self.evictions = Evictions(strategy)
        self.references = References()
        self.requests: list[RenderedRequest] = []

    def account(self, request: RenderedRequest) -> Account:
        plan = self.strategy.plan(request.prompt)
        known = restorable(self.memory, request.prompt.tokens)
        reference = self.references.find(request)
        change, dues = self._compare(request, known, reference)
        parts = [*self._known_parts(request, plan, known), *dues]
        account = Account(
            request,
            plan,
            known,
            reference.request if reference else None,
            change,
            tuple(_split(_with_spans(parts, plan), request.prompt.segments)),
        )
        self._commit(request, plan)
        return account

    def _commit(self, request: RenderedRequest, plan: Plan) -> None:
        computed = request.computed
        commit = self.strategy.commit(computed, plan)
        self.evictions.note(len(self.requests), computed.tokens, commit.evicted)
        self.memory.commit(computed, Plan(len(computed)))
        self.references.add(request)
        self.requests.append(request)

    def _known_parts(
        self, request: RenderedRequest, plan: Plan, known: int
    ) -> Iterator[Fate]:
        """Parts of what was computed before in this very place."""
        last = min(known, len(request.prompt) - 1)
        restored = min(next(plan.gaps)[0], last)
        matched = min(max(leading(self.strategy, plan), restored), last)
        block = block_of(self.strategy)
        whole = max(last // block * block, matched)
        yield Fate(0, restored, None)
        yield Fate(restored, matched, Cause.MINIMUM)
        for start, stop, by in self.evictions.find(
            request.prompt.tokens, matched, whole
        ):
            if by is None:
                yield Fate(start, stop, Cause.NOT_KEPT)
            else:
                yield Fate(start, stop, Cause.EVICTED, self.requests[by])
        yield Fate(whole, last, Cause.BLOCK)
        if known > last:
            yield Fate(last, known, Cause.LAST)

    def _compare(
        self, request: RenderedRequest, known: int, reference: Reference | None
    ) -> tuple[Change | None, list[Fate]]:
        """The break, and parts of what was never computed in this place."""
        length = len(request.prompt)
        if known >= length:
            return None, []
        hashed = request.unit > 1
        if reference and hashed and reference.request.session == request.session:
            return None, list(_chained_fates(request, known, reference))
        if reference is None or hashed:
            return None, [Fate(known, length, _first_cause(request))]
        found = align(
            request.prompt,
            reference,
            same_session=reference.request.session == request.session,
            decode=self.decode,
        )
        parts = [
            Fate(
                max(due.start, known),
                due.stop,
                due.change.cause if due.change else Cause.FRESH,
                change=due.change,
            )
            for due in found.dues
            if due.stop > known
        ]
        return next(iter(found.changes), None), parts


def _chained_fates(
    request: RenderedRequest, known: int, reference: Reference
) -> Iterator[Fate]:
    """Of units that stand for all before them: behind a change nothing looks the same.

    So what takes the place of something is blamed on the change, and only what stands
    behind the end of the earlier prompt is new.
    """
    length, before = len(request.prompt), len(reference.request.prompt) - 1
    replaced = min(max(before, known), length)
    static = known < request.prompt.static_length
    cut = Cause.CUT if length <= before else Cause.EDITED
    yield Fate(known, replaced, Cause.SYSTEM if static else cut)
    yield Fate(replaced, length, Cause.FRESH)


def _first_cause(request: RenderedRequest) -> Cause:
    """Of what has nothing to be compared with."""
    if request.side:
        return Cause.SIDE
    return Cause.AGENT if "/" in request.session else Cause.SESSION


def _with_spans(parts: Iterable[Fate], plan: Plan) -> Iterator[Fate]:
    """Parts without what is restored behind the prefix; that makes parts of its own."""
    gaps = list(plan.gaps)
    for part in parts:
        position = part.start
        for start, stop in gaps:
            start, stop = max(start, position), min(stop, part.stop)
            if start >= stop:
                continue
            if start > position:
                yield Fate(position, start, None)
            yield replace(part, start=start, stop=stop)
            position = stop
        if position < part.stop:
            yield Fate(position, part.stop, None)


def _split(parts: Iterable[Fate], segments: Sequence[Segment]) -> Iterator[Fate]:
    """Parts cut where blocks end, and labelled."""
    for part in parts:
        for segment in segments:
            start, stop = max(part.start, segment.start), min(part.stop, segment.stop)
            if start < stop:
                yield replace(
                    part, start=start, stop=stop, label=segment.label, role=segment.role
                )
