"""Runs several answers at once, on the worker thread.

A step decodes one token of every running answer, then computes one chunk of one prompt,
unless the answers are still owed time for the chunk before. So a running answer never
waits for longer than a chunk, and a short prompt does not wait for a long one. A prompt
without an answer is computed while there is nothing else to do.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from mlxlab.engine.batch import Batch
from mlxlab.engine.executor import Computation, Executor
from mlxlab.engine.memory import LEAST
from mlxlab.engine.samplers import LogitsProcessor, Sampler
from mlxlab.errors import MemoryFullError, RequestError
from mlxlab.pace import (
    ANSWERS,
    DECODED_SHARE,
    LATEST_SHARE,
    PREFILL_RATE,
    SHARED_TOKENS,
)
from mlxlab.prompt import Prompt, common_prefix
from mlxlab.strategies.use import UNKNOWN, Use

if TYPE_CHECKING:
    from mlxlab.engine.engine import Engine, PrefillProgress
    from mlxlab.strategies import Commit, Plan

__all__ = ["Request", "Runner", "Stored"]

log = logging.getLogger(__name__)

#: Tokens of an answer that memory is kept for; a longer one takes what is free.
_EXPECTED = 4096
#: mlx-lm's caches grow by this many tokens at a time.
_STEP = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """What a request has stored.

    Attributes:
        length: leading tokens of its prompt and answer.
        commit: what changed.
        use: what the eviction policy was told.
    """

    length: int
    commit: Commit
    use: Use


def _unknown(running: bool) -> Use:
    return Use(running=running)


@dataclass(eq=False)
class Request:
    """One answer to compute.

    Args:
        engine: whose model and caches are used.
        prompt: the rendered prompt.
        max_tokens: most tokens of the answer; 0 only fills the cache, while no answer
            is asked for.
        sampler: chooses tokens.
        processors: applied to the logits before the sampler, in order.
        stop: ids that end the answer. The stop id is part of it.
        put: called with the plan, the progress of the prefill, then ids. True ends the
            answer.
        done: called at the end, when all computed tokens are cached.
        committed: called after each commit.
        use: called before each commit with whether the answer goes on; returns what
            the eviction policy is told of the request.

    Attributes:
        answer: the ids so far.
        planned: number of its plan; a runner counts plans and commits together.
        stored: number of each commit, and the leading tokens that it stored.
        restore_s: seconds spent on its plan and on reused tokens so far.
        prefill_s: seconds spent on the other tokens of its prompt so far.
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
    committed: Callable[[Stored], object] = lambda stored: None
    use: Callable[[bool], Use] = _unknown
    answer: list[int] = field(default_factory=list, init=False)
    planned: int | None = field(default=None, init=False)
    stored: list[tuple[int, int]] = field(default_factory=list, init=False)
    restore_s: float = field(default=0.0, init=False)
    prefill_s: float = field(default=0.0, init=False)
    cancelled: bool = field(default=False, init=False)
    error: Exception | None = field(default=None, init=False)

    def note(self, number: int, stored: Stored) -> None:
        """Note a commit with its number."""
        self.stored.append((number, stored.length))
        self.committed(stored)


class Runner:
    """Decides whose turn it is.

    The shortest remaining prefill comes first. Each second of waiting counts like a
    second less of work, so nothing waits for ever.

    A prompt begins when memory has room for it and for its answer. Where a long answer
    takes more than expected, caches that no request uses are released, then the
    youngest answer ends.

    Args:
        most: answers that run at once; further ones wait.
        release: frees stored tokens that no request uses; whether there were any.
        clock: seconds.
        executor: carries out the decisions; a new one if None.
    """

    def __init__(
        self,
        most: int = ANSWERS,
        release: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = monotonic,
        executor: Executor | None = None,
    ) -> None:
        self.most = most
        self._release = release
        self._clock = clock
        self._executor = executor or Executor()
        self._live: list[_Running] = []  # in order of arrival
        self._rate = PREFILL_RATE
        self._owed = 0.0  # seconds of decoding before the next chunk
        self._order = count()

    @property
    def running(self) -> int:
        """Requests that have begun."""
        return len(self._begun)

    @property
    def _begun(self) -> list[_Running]:
        return [own for own in self._live if own.begun is not None]

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

        After a long chunk, running answers get several tokens before the next.

        Returns:
            Whether there is more to do.
        """
        self._stay_within()
        started = self._clock()
        for batch in list(self._executor.batches):
            self._decode(batch)
        decoded = self._clock()
        self._owed -= decoded - started
        if self._owed > 0 and self._executor.batches:
            return True
        chosen = self._choose()
        if chosen is not None:
            try:
                self._fill(chosen)
            except Exception as error:
                self._end(chosen, error)
        self._owed = DECODED_SHARE * (self._clock() - decoded)
        return bool(self._live)

    def _decode(self, batch: Batch) -> None:
        members = {
            own.begun.row: own
            for own in self._live
            if own.begun is not None and own.batch is batch
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
        prefill = own.begun.prefill
        before = prefill.compute_s
        done = self._executor.compute(own.begun)
        request.restore_s, request.prefill_s = prefill.restore_s, prefill.compute_s
        if done:
            tokens = sum(progress.tokens for progress in done)
            self._measure(tokens, prefill.compute_s - before)
        for progress in done:
            request.put(progress)
        if not own.remaining:
            self._join(own, own.begun)

    def _join(self, own: _Running, begun: Computation) -> None:
        request, executor = own.request, self._executor
        if request.max_tokens <= 0:
            self._end(own)
            return
        alike = executor.alike(begun)
        batch = next((b for b in alike if self._joins(own, b)), None)
        executor.join(begun, request.sampler, request.processors, batch)

    def _end(self, own: _Running, error: Exception | None = None) -> None:
        self._live.remove(own)
        request, begun = own.request, own.begun
        request.engine.users -= 1
        try:
            if begun is not None:
                use, error = _told(request, error)
                answer = request.answer if error is None else None
                commit = self._executor.end(begun, answer, use)
                if error is None:
                    length = begun.prefill.computed(len(request.answer))
                    request.note(next(self._order), Stored(length, commit, use))
        except Exception as failure:
            error = error or failure
        request.error = error
        request.done()

    def _choose(self) -> _Running | None:
        """Return the prompt to compute next."""
        answers = [own for own in self._live if not own.only_fills]
        if not answers:
            waiting = (self._begun or self._live)[:1]
        else:
            full = sum(own.begun is not None for own in answers) >= self.most
            waiting = [
                own
                for own in answers
                if own.batch is None and not (full and own.begun is None)
            ]
        if len(waiting) > 1:
            now = self._clock()
            waiting.sort(key=lambda own: self._urgency(own, now))
        for chosen in waiting:
            if chosen.begun is not None:
                return chosen
            if first := self._shared(chosen):
                return first
            if self._admits(chosen):
                return chosen
        return None

    def _admits(self, own: _Running) -> bool:
        """Whether memory has room for a request; a lonely one that has none fails."""
        memory = own.request.engine.memory
        if memory is None:
            return True
        prompt = len(own.request.prompt)
        beside = memory.needed(own.request.engine.model, LEAST, prompt)
        while (wanted := _growth([*self._begun, own]) + beside) > memory.room:
            if self._make_room():
                continue
            if self._begun:
                return False
            memory.settle()
            if wanted > memory.room:
                error = RequestError(
                    f"prompt is too long: {prompt} tokens and an answer take "
                    f"{wanted >> 20} MiB, where {max(memory.room, 0) >> 20} MiB of "
                    "--memory are free; a smaller capacity leaves more"
                )
                self._end(own, error)
                return False
        return True

    def _joins(self, own: _Running, batch: Batch) -> bool:
        """Whether memory has room for a batch padded to its longest answer."""
        memory = own.request.engine.memory
        if memory is None:
            return True
        lengths = [m.position for m in self._live if m.batch is batch]
        lengths.append(own.position)
        whole = max(lengths) * len(lengths)
        copied = whole // own.layers  # one layer is held twice
        tokens = whole - sum(lengths) + copied
        needed = tokens * own.request.engine.strategy.computed_bytes
        return needed + _growth(self._begun) <= memory.room

    def _stay_within(self) -> None:
        """Release what is not used, or end an answer, before memory runs out."""
        while self._executor.batches:
            running = [own for own in self._live if own.batch is not None]
            memory = running[-1].request.engine.memory
            if memory is None:
                return
            step = sum(
                (_STEP + own.position // own.layers)
                * own.request.engine.strategy.computed_bytes
                for own in running
            )
            if memory.room >= step:
                return
            if not self._make_room():
                log.warning("an answer ends early: the memory budget is used up")
                self._end(running[-1])

    def _make_room(self) -> bool:
        """Release what no request uses, or end one that only fills the cache."""
        if self._release():
            return True
        filling = next((own for own in self._begun if own.only_fills), None)
        if filling is None:
            return False
        error = MemoryFullError("the cache was not filled: answers took the memory")
        self._end(filling, error)
        return True

    def _urgency(self, own: _Running, now: float) -> float:
        """Return seconds of work left, less the seconds of waiting; least is first."""
        return own.to_compute / self._rate - (now - own.arrived)

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
        if other is None or most < waiting.stored + SHARED_TOKENS:
            return None
        if other.position < most:
            return other
        assert other.begun is not None
        use = other.request.use(True)
        commit = self._executor.store(other.begun, most, use)
        other.request.note(next(self._order), Stored(most, commit, use))
        return None

    def _measure(self, tokens: int, seconds: float) -> None:
        if seconds > 0:
            self._rate += LATEST_SHARE * (tokens / seconds - self._rate)


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
    def only_fills(self) -> bool:
        """Whether it has no answer, so that everything else comes first."""
        return self.request.max_tokens <= 0

    @property
    def batch(self) -> Batch | None:
        """The batch that its answer is decoded in; None before."""
        return None if self.begun is None else self.begun.batch

    @property
    def remaining(self) -> int:
        """Tokens to compute before the last one."""
        if self.begun is not None:
            return self.begun.remaining
        return max(len(self.request.prompt) - 1, 0)

    @property
    def position(self) -> int:
        """Tokens in the working caches."""
        if self.batch is not None:
            return len(self.request.prompt) + len(self.request.answer)
        return 0 if self.begun is None else self.begun.position

    @property
    def layers(self) -> int:
        """Caches of the model; a step copies one at a time."""
        assert self.begun is not None
        return max(self.begun.layers, 1)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the working caches at the end of the answer, as far as expected."""
        request, strategy = self.request, self.request.engine.strategy
        answer = min(request.max_tokens, max(_EXPECTED, len(request.answer) + _STEP))
        tokens = -(-(len(request.prompt) + answer) // _STEP) * _STEP
        return tokens * strategy.computed_bytes + strategy.checkpoint_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the working caches now."""
        if self.begun is None:
            return 0
        strategy = self.request.engine.strategy
        return self.position * strategy.computed_bytes + strategy.checkpoint_bytes

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


def _told(request: Request, error: Exception | None) -> tuple[Use, Exception | None]:
    """Return what is told of a request that ends, and why it fails, if it does."""
    if error is not None:
        return UNKNOWN, error
    try:
        return request.use(False), None
    except Exception as failure:
        return UNKNOWN, failure


def _growth(running: Sequence[_Running]) -> int:
    """Return the bytes that caches and stores will grow by until all have ended."""
    growth = 0
    to_store: Counter[Engine] = Counter()
    for own in running:
        growth += max(own.whole_bytes - own.held_bytes, 0)
        if own.request.engine.strategy.max_sequences != 0:
            to_store[own.request.engine] += own.whole_bytes
    for engine, whole in to_store.items():
        free = engine.strategy.capacity - engine.strategy.stored_bytes
        growth += min(max(free, 0), whole)
    return growth
