"""Runs several answers at once, on the worker thread.

A step decodes one token of every running answer, then computes one chunk of one prompt.
So a running answer never waits for longer than a chunk, and a short prompt does not
wait for a long one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from mlxlab.engine.batch import Batch
from mlxlab.engine.executor import Computation, Executor
from mlxlab.engine.samplers import LogitsProcessor, Sampler
from mlxlab.prompt import Prompt, common_prefix

if TYPE_CHECKING:
    from mlxlab.engine.engine import Engine, PrefillProgress
    from mlxlab.strategies import Plan

__all__ = ["Request", "Runner"]

#: Answers that run at once, by default.
_MOST = 8
#: Tokens a second of prefill, before any was measured.
_RATE = 1000.0
#: Share of the latest chunk in the measured rate.
_LATEST = 0.3
#: A prompt waits for another that computes at least this many of its tokens.
_LEAST_SHARED = 64


@dataclass(eq=False)
class Request:
    """One answer to compute.

    Args:
        engine: whose model and caches are used.
        prompt: the rendered prompt.
        max_tokens: most tokens of the answer; 0 only fills the cache.
        sampler: chooses tokens.
        processors: applied to the logits before the sampler, in order.
        stop: ids that end the answer. The stop id is part of it.
        put: called with the plan, the progress of the prefill, then ids. True ends the
            answer.
        done: called at the end, when all computed tokens are cached.

    Attributes:
        answer: the ids so far.
        planned: number of its plan; a runner counts plans and commits together.
        stored: number of each commit, and the leading tokens that it stored.
        cancelled: whether it was ended by its caller.
        error: why it ended early, if it failed.
    """

    engine: Engine
    prompt: Prompt
    max_tokens: int
    sampler: Sampler
    processors: Sequence[LogitsProcessor]
    stop: Container[int]
    put: Callable[[Plan | PrefillProgress | int], object]
    done: Callable[[], object] = lambda: None
    answer: list[int] = field(default_factory=list, init=False)
    planned: int | None = field(default=None, init=False)
    stored: list[tuple[int, int]] = field(default_factory=list, init=False)
    cancelled: bool = field(default=False, init=False)
    error: Exception | None = field(default=None, init=False)


class Runner:
    """Decides whose turn it is.

    The shortest remaining prefill comes first. Each second of waiting counts like a
    second less of work, so nothing waits for ever.

    Args:
        most: answers that run at once; further ones wait.
        clock: seconds.
        executor: carries out the decisions; a new one if None.
    """

    def __init__(
        self,
        most: int = _MOST,
        clock: Callable[[], float] = monotonic,
        executor: Executor | None = None,
    ) -> None:
        self.most = most
        self._clock = clock
        self._executor = executor or Executor()
        self._live: list[_Running] = []  # in order of arrival
        self._rate = _RATE
        self._order = count()

    def __len__(self) -> int:
        return len(self._live)

    @property
    def running(self) -> int:
        """Answers that have begun."""
        return sum(own.begun is not None for own in self._live)

    def add(self, request: Request) -> None:
        """Queue a request."""
        request.engine.users += 1
        self._live.append(_Running(request, self._clock()))

    def cancel(self, request: Request) -> None:
        """End a request now; computed tokens are cached. It may have ended already."""
        for own in [own for own in self._live if own.request is request]:
            request.cancelled = True
            self._end(own)

    def close(self, error: Exception) -> None:
        """End all requests with an error."""
        for own in list(self._live):
            self._end(own, error)

    def step(self) -> bool:
        """Decode one token of each answer, and compute one chunk of one prompt.

        Returns:
            Whether there is more to do.
        """
        for batch in list(self._executor.batches):
            self._decode(batch)
        chosen = self._choose()
        if chosen is not None:
            try:
                self._fill(chosen)
            except Exception as error:
                self._end(chosen, error)
        return bool(self._live)

    def _decode(self, batch: Batch) -> None:
        members = {
            own.begun.row: own
            for own in self._live
            if own.begun is not None and own.begun.batch is batch
        }
        try:
            found = self._executor.step(batch)
        except Exception as error:
            for own in members.values():
                self._end(own, error)
            return
        for number, token in found.items():
            own = members[number]
            if isinstance(token, Exception):
                self._end(own, token)
            else:
                self._take(own, token)

    def _take(self, own: _Running, token: int) -> None:
        request = own.request
        request.answer.append(token)
        try:
            ended = request.put(token)
        except Exception as error:
            self._end(own, error)
            return
        if ended or token in request.stop or len(request.answer) >= request.max_tokens:
            self._end(own)

    def _fill(self, own: _Running) -> None:
        """Compute a chunk; then, or if none is left, let the answer begin."""
        request = own.request
        if own.begun is None:
            own.begun = self._executor.begin(request.engine, request.prompt)
            request.planned = next(self._order)
            request.put(own.begun.prefill.plan)
        before = own.begun.prefill.compute_s
        done = self._executor.compute(own.begun)
        if done:
            tokens = sum(progress.tokens for progress in done)
            self._measure(tokens, own.begun.prefill.compute_s - before)
        for progress in done:
            request.put(progress)
        if not own.remaining:
            if request.max_tokens > 0:
                self._executor.join(own.begun, request.sampler, request.processors)
            else:
                self._end(own)

    def _end(self, own: _Running, error: Exception | None = None) -> None:
        self._live.remove(own)
        request, begun = own.request, own.begun
        request.engine.users -= 1
        try:
            if begun is not None:
                answer = request.answer if error is None else None
                self._executor.end(begun, answer)
                if error is None:
                    length = begun.prefill.computed(len(request.answer))
                    request.stored.append((next(self._order), length))
        except Exception as failure:
            error = error or failure
        request.error = error
        request.done()

    def _choose(self) -> _Running | None:
        """Return the prompt to compute next."""
        full = self.running >= self.most
        waiting = [
            own
            for own in self._live
            if not own.answers and not (full and own.begun is None)
        ]
        if not waiting:
            return None
        now = self._clock()
        chosen = min(
            waiting, key=lambda own: own.to_compute / self._rate - (now - own.arrived)
        )
        if chosen.begun is None and (first := self._shared(chosen)):
            return first
        return chosen

    def _shared(self, waiting: _Running) -> _Running | None:
        """Share with another prompt what both begin with and nothing has stored.

        Returns:
            The other, if it has still to compute that. Else it is stored now.
        """
        engine, most, other = waiting.request.engine, 0, None
        for own in self._live:
            if own.begun is not None and own.request.engine is engine:
                common = common_prefix(
                    own.request.prompt.tokens, waiting.request.prompt.tokens[:-1]
                )
                plan = own.begun.prefill.plan
                shared = engine.strategy.count_shared(plan, common)
                if shared > most:
                    most, other = shared, own
        if other is None or most < waiting.stored + _LEAST_SHARED:
            return None
        assert other.begun is not None
        if other.begun.position < most:
            return other
        self._executor.store(other.begun, most)
        other.request.stored.append((next(self._order), most))
        return None

    def _measure(self, tokens: int, seconds: float) -> None:
        if seconds > 0:
            self._rate += _LATEST * (tokens / seconds - self._rate)


@dataclass(eq=False)
class _Running:
    """A request on its way.

    Attributes:
        arrived: by the runner's clock.
        begun: None before its turn.
    """

    request: Request
    arrived: float
    begun: Computation | None = None
    _stored: tuple[int, int] = (-1, 0)

    @property
    def answers(self) -> bool:
        """Whether its prompt is computed."""
        return self.begun is not None and self.begun.batch is not None

    @property
    def remaining(self) -> int:
        """Tokens to compute before the last one."""
        if self.begun is not None:
            return self.begun.remaining
        return max(len(self.request.prompt) - 1, 0)

    @property
    def to_compute(self) -> int:
        """As far as it is known now."""
        return self.remaining - (self.stored if self.begun is None else 0)

    @property
    def stored(self) -> int:
        """Tokens that a plan would reuse now."""
        engine = self.request.engine
        if self._stored[0] != engine.commits:
            plan = engine.strategy.preview(self.request.prompt)
            self._stored = engine.commits, plan.reused
        return self._stored[1]
