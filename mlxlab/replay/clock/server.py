"""Our server on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol

from mlxlab.pace import (
    ANSWERS,
    CHUNK_S,
    CHUNK_TOKENS,
    DECODED_SHARE,
    LATEST_SHARE,
    PREFILL_RATE,
    SHARED_TOKENS,
)
from mlxlab.prompt import Prompt, common_prefix
from mlxlab.replay.clock.batch import DecodingBatch
from mlxlab.replay.clock.timing import Service, Timing
from mlxlab.replay.cost_model import CostModel, computed
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import Plan, Strategy
from mlxlab.strategies.use import Use

__all__ = ["Arrivals", "ClockedServer"]


class Arrivals(Protocol):
    """Says when requests are sent; a :class:`mlxlab.replay.turns.Schedule` does."""

    @property
    def next_due(self) -> float | None:
        """When the next request is sent; None if all wait for answers, or are sent."""

    def start(self, now: float) -> None:
        """Begin."""

    def take(self, now: float) -> Iterator[tuple[float, int]]:
        """Yield when each due request was to be sent, and its number, in order."""

    def end(self, number: int, now: float) -> None:
        """Note that the answer of a request has ended."""


class ClockedServer:
    """Takes the turns of :class:`mlxlab.engine.Runner` on estimated seconds.

    As there, a step decodes a token of every running answer and then computes one chunk
    of one prompt, unless the answers are still owed time. The shortest prefill comes
    first, less the time it has waited; a prompt waits for another one that computes
    what both begin with. Steps in which nothing changes are taken at once.

    Simplified: memory for working caches never runs out. A plan's restores are one
    item, in front of all chunks. Copying a finished answer into the store takes no
    time.

    Args:
        strategy: a fresh one.
        costs: a calibration that has measured decoding.
        chunk: tokens computed at a time; as calibrated if None.
        most: answers that run at once.

    Raises:
        ConfigError: the calibration has no seconds of decoding.
    """

    def __init__(
        self,
        strategy: Strategy,
        costs: CostModel,
        *,
        chunk: int | None = None,
        most: int = ANSWERS,
    ) -> None:
        self.strategy = strategy
        self.costs = costs
        self.chunk = chunk or costs.machine.chunk
        self.most = most
        if strategy.tier is not None:
            strategy.tier.pays = costs.loading_pays(strategy.tier)
        self._now = self._busy_s = 0.0
        self._waiting: list[_Running] = []  # prompts, in order of arrival
        self._begun: list[_Running] = []  # prompts and answers
        self._batch: DecodingBatch[_Running] = DecodingBatch(costs.decoding)
        self._rate = PREFILL_RATE
        self._owed = self._turn = 0.0  # when the latest chunk began
        self._in_time = inf  # tokens that the time of a chunk was enough for, at last
        self._commits = 0
        self._filling = 0  # waiting prompts whose caches are only filled

    def serve(
        self,
        requests: Sequence[RenderedRequest],
        arrivals: Arrivals,
        progress: Callable[[int], object] = lambda requests: None,
    ) -> Service:
        """Answer all requests; used once.

        Args:
            requests: by number.
            arrivals: say when they are sent.
            progress: called with the number of requests that have just ended.
        """
        done: list[Timing] = []
        arrivals.start(self._now)
        while True:
            for due, number in arrivals.take(self._now):
                own = _Running.of(number, requests[number], due)
                self._waiting.append(own)
                self._filling += own.only_fills
            if not self._waiting and not self._begun:
                if arrivals.next_due is None:
                    break
                self._now = max(arrivals.next_due, self._now)
                continue
            for own in self._step(arrivals.next_due):
                done.append(own.timing)
                arrivals.end(own.timing.number, own.timing.ended)
                progress(1)
        done.sort(key=lambda timing: timing.begun)
        return Service(done, self._busy_s, self._now)

    def _step(self, next_due: float | None) -> list[_Running]:
        """Decode, then compute one chunk; return the answers that have ended."""
        ended = self._decode(next_due) if len(self._batch) else []
        if self._owed > 0 and len(self._batch):
            return ended
        self._turn = self._now
        chosen = self._choose()
        # Who gets an answer may send the next request at once.
        until = self._now if ended else inf if next_due is None else next_due
        if chosen is not None and self._fill(chosen, until):
            ended.append(chosen)
        self._owed = DECODED_SHARE * (self._now - self._turn)
        return ended

    def _decode(self, next_due: float | None) -> list[_Running]:
        """Decode until something else has its turn, an answer ends or one arrives."""
        batch = self._batch
        steps = batch.left
        if self._waits:
            steps = min(steps, batch.steps_for(self._owed))
        if next_due is not None:
            steps = min(steps, batch.steps_for(next_due - self._now))
        for own in batch.fresh:
            own.timing.first = self._now + batch.seconds(1)
        seconds = batch.seconds(steps)
        self._spend(seconds)
        self._owed -= seconds
        ended = []
        for own, leave_s in batch.advance(steps):
            self._spend(leave_s)
            self._owed -= leave_s
            self._end(own)
            ended.append(own)
        return ended

    @property
    def _waits(self) -> bool:
        """Whether a prompt could be computed now."""
        begun = len(self._begun)
        return bool(self._waiting) and (begun > len(self._batch) or begun < self.most)

    def _choose(self) -> _Running | None:
        """Return the prompt to compute next."""
        waiting = self._candidates()
        if waiting is None:
            return (self._begun or self._waiting)[0]
        if not waiting:
            return None
        chosen = waiting[0] if len(waiting) == 1 else self._first(waiting)
        if chosen.plan is not None:
            return chosen
        return self._shared(chosen) or chosen

    def _candidates(self) -> list[_Running] | None:
        """Return the prompts that could be computed; None while caches are filled."""
        waiting = self._waiting
        if self._filling:
            waiting = [own for own in waiting if not own.only_fills]
            if not waiting and not len(self._batch):
                return None
            begun = sum(own.plan is not None for own in waiting) + len(self._batch)
        else:
            begun = len(self._begun)
        if begun >= self.most:
            return [own for own in waiting if own.plan is not None]
        return waiting

    def _first(self, waiting: Sequence[_Running]) -> _Running:
        """Return the shortest prefill, less the time that it has waited.

        All wait until the same time, so when they were sent is enough.
        """
        rate, first, least = self._rate, waiting[0], inf
        for own in waiting:
            to_compute = own.end - own.position
            if own.plan is None:
                to_compute -= self._stored(own)
            urgency = to_compute / rate + own.due
            if urgency < least:
                first, least = own, urgency
        return first

    def _stored(self, own: _Running) -> int:
        """Return the tokens that a plan would reuse now."""
        if own.previewed[0] != self._commits:
            plan = self.strategy.preview(own.request.prompt)
            own.previewed = self._commits, plan.reused * own.request.unit
        return own.previewed[1]

    def _shared(self, waiting: _Running) -> _Running | None:
        """Return the prompt that computes what this one begins with, if one does.

        What it has computed already is stored now.
        """
        most, other = 0, None
        unit = waiting.request.unit
        asked = waiting.request.prompt.tokens[:-1]
        for own in self._begun:
            assert own.plan is not None
            common = common_prefix(own.request.prompt.tokens, asked)
            shared = self.strategy.count_shared(own.plan, common)
            if shared > most:
                most, other = shared, own
        if other is None or most * unit < self._stored(waiting) + SHARED_TOKENS:
            return None
        if other.position < min(most * unit, other.end):
            return other
        use = replace(other.request.use, t=other.due).unfinished
        self._commit(other, other.request.computed.head(most), use)
        return None

    def _fill(self, own: _Running, until: float) -> bool:
        """Restore, or compute; whether the request ends with it."""
        if own.plan is None:
            self._begin(own)
        if own.restore_s is not None:
            self._spend(own.restore_s)
            own.restore_s = None
        elif own.position < own.end:
            self._compute(own, until)
        if own.position < own.end:
            return False
        self._waiting.remove(own)
        self._filling -= own.only_fills
        if own.answer:
            tokens = own.request.tokens
            # The last token is computed by itself; the first step gives its answer.
            self._spend(self.costs.last_s(tokens))
            self._spend(self._batch.add(own, tokens, own.answer))
            return False
        self._end(own)
        return True

    def _begin(self, own: _Running) -> None:
        request = own.request
        plan = own.plan = self.strategy.plan(request.prompt)
        self._begun.append(own)
        timing, unit = own.timing, request.unit
        timing.begun = self._now
        # The last token is always computed, but hashed prompts end with whole units.
        timing.reused_tokens = min(plan.reused * unit, request.tokens - 1)
        timing.disk_tokens = min(plan.disk_tokens * unit, timing.reused_tokens)
        if plan.spans:
            own.restore_s = self.costs.restore_s(timing.reused_tokens)
            if self.strategy.tier is not None:
                loaded = self.strategy.tier.loaded_bytes(plan)
                own.restore_s += self.costs.load_s(loaded)
        start, stop = computed(plan, unit, request.tokens)
        own.position = min(start, request.tokens - 1)
        own.end = min(own.end, stop - 1)
        own.stops = [place * unit for place in reversed(plan.captures)]

    def _compute(self, own: _Running, until: float) -> None:
        """Compute a chunk.

        While nothing decodes, further chunks follow until another prompt arrives or
        has its turn.
        """
        rivals: list[tuple[int, float]] = []
        if len(self._batch):
            until = self._now
        elif len(self._waiting) > 1:
            rivals = [
                (other.end - other.position, other.due)
                if other.plan is not None
                else (other.end - self._stored(other), other.due)
                for other in self._candidates() or ()
                if other is not own
            ]
        now, position, end, stops = self._now, own.position, own.end, own.stops
        rate, in_time, most = self._rate, self._in_time, self.chunk
        least = min(most, CHUNK_TOKENS)
        _, chunk_s, token_s, before_s, within_s, _ = self.costs.prefill
        first, compared = -inf, 0.0
        while True:
            self._turn = now
            if in_time >= most:
                stop = position + most
            else:
                stop = position + (int(in_time) // least * least or least)
            if stop > end:
                stop = end
            if stops:
                while stops and stops[-1] <= position:
                    stops.pop()
                stop = min(stop, *stops[-1:])
            tokens = stop - position
            seconds = chunk_s + tokens * (
                token_s + before_s * position + within_s * tokens
            )
            now += seconds
            position = stop
            if seconds > 0:
                rate += LATEST_SHARE * (tokens / seconds - rate)
                if tokens >= least:
                    in_time = tokens * CHUNK_S / seconds
            if position >= end or now >= until:
                break
            if rivals:
                urgency = (end - position) / rate + own.due
                # At a lower rate than the rivals were compared at, all are later.
                if urgency > first or rate > compared:
                    compared = rate
                    first = min([left / rate + due for left, due in rivals])
                    if urgency > first:
                        break
        self._busy_s += now - self._now
        self._now, self._rate, self._in_time = now, rate, in_time
        own.position = position

    def _spend(self, seconds: float) -> None:
        self._now += seconds
        self._busy_s += seconds

    def _end(self, own: _Running) -> None:
        own.timing.ended = self._now
        self._begun.remove(own)
        request, told = own.request, own.request.use
        use = Use(
            told.agent,
            own.due,
            self._now,
            told.stop,
            told.tools,
            told.side,
            learned=told.learned,
        )
        stored, cut_off = request.computed, request.cut_off
        self._commit(own, stored if cut_off is None else stored.head(cut_off), use)

    def _commit(self, own: _Running, stored: Prompt, use: Use) -> None:
        assert own.plan is not None
        self.strategy.commit(stored, own.plan.head(len(stored)), use)
        self._commits += 1


@dataclass(eq=False, slots=True)
class _Running:
    """A request on its way.

    Attributes:
        due: when it was sent.
        end: tokens to have in the caches before the answer begins.
        answer: tokens to decode; 0 if its client leaves before.
        only_fills: whether it has no answer, so that everything else comes first.
        plan: None before its turn.
        restore_s: seconds of the restore that comes next; None if none is left.
        position: tokens in the caches.
        stops: tokens at which a chunk ends, the last first.
        previewed: number of commits, and the tokens that a plan would reuse then.
    """

    request: RenderedRequest
    timing: Timing
    due: float
    end: int
    answer: int
    only_fills: bool
    plan: Plan | None = None
    restore_s: float | None = None
    position: int = 0
    stops: list[int] = field(default_factory=list)
    previewed: tuple[int, int] = (-1, 0)

    @classmethod
    def of(cls, number: int, request: RenderedRequest, due: float) -> _Running:
        cut_off, only_fills = request.cut_off, request.only_fills
        tokens = request.tokens
        end = tokens - 1 if cut_off is None else cut_off
        left = cut_off is not None or only_fills
        answer = 0 if left else max(request.answer_tokens, 1)
        timing = Timing(number, tokens, answer, due)
        return cls(request, timing, due, end, answer, only_fills)
