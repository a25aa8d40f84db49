"""Users: several of them at once on one engine, each with traces of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter, sleep

from mlxlab.engine import Engine, Executor, Forced, PrefillProgress, Request, Runner
from mlxlab.engine.executor import Computation
from mlxlab.engine.samplers import greedy
from mlxlab.engine.worker import Worker
from mlxlab.prompt import Prompt
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Outcome, Progress
from mlxlab.replay.turns import Schedule
from mlxlab.strategies import Commit, Plan
from mlxlab.strategies.use import UNKNOWN, Use
from mlxlab.traces.schema import Order

__all__ = ["Answered", "LiveUsers"]

#: Most seconds between two looks at whether the replay was stopped.
_NAP_S = 0.1


@dataclass(frozen=True, slots=True)
class Answered:
    """One request after a live replay.

    Attributes:
        number: of the request.
        request: with order and times of this replay, as if all had been one trace. A
            simulation of these requests reuses the same tokens.
        outcome: what it cost.
    """

    number: int
    request: RenderedRequest
    outcome: Outcome


class LiveUsers:
    """Lets users ask at once, as clients of our server do.

    Answers decode together, and recorded ids take the place of sampled ones. The first
    token's time counts from when the user sends the request, so it includes the queue.
    A request without a recorded answer ends when its prompt is computed.

    Args:
        worker: the thread that owns the engine's model.
        engine: an engine with a fresh strategy.
        requests: by number.
        schedule: says when they are sent.
        progress: called with the prompt tokens that were restored or computed, and for
            each token of an answer.
    """

    def __init__(
        self,
        worker: Worker,
        engine: Engine,
        requests: Sequence[RenderedRequest],
        schedule: Schedule,
        progress: Progress | None = None,
    ) -> None:
        self.worker = worker
        self.engine = engine
        self.requests = requests
        self.schedule = schedule
        self._progress = progress or (lambda tokens: None)
        self._ledger = _Ledger()
        self._runner = Runner(executor=self._ledger)
        self._asked: list[_Asked] = []
        self._running: list[_Asked] = []

    def run(self) -> list[Answered]:
        """Replay all requests, and return them in the order of their plans.

        Raises:
            MlxlabError: an answer failed.
        """
        for _ in self.worker.stream(self._steps):
            pass
        self._asked.sort(key=lambda asked: asked.planned)
        trace = "+".join(dict.fromkeys(own.trace for own in self.requests))
        return [
            asked.answered(trace, line)
            for asked, line in zip(self._asked, self._ledger.lines, strict=True)
        ]

    def _steps(self) -> Iterator[None]:
        """Send what is due and run a step, until all answers have ended."""
        started = perf_counter()
        self.schedule.start(0.0)
        while True:
            now = perf_counter() - started
            for due, number in self.schedule.take(now):
                self._ask(number, due, started)
            if self._running:
                self._runner.step()
                self._settle()
            elif (next_due := self.schedule.next_due) is None:
                return
            else:
                sleep(min(max(next_due - now, 0.0), _NAP_S))
            yield

    def _ask(self, number: int, due: float, started: float) -> None:
        asked = _Asked(number, self.requests[number], due, started, self._progress)
        self._asked.append(asked)
        self._running.append(asked)
        self._runner.add(asked.of(self.engine))

    def _settle(self) -> None:
        """Let clients leave that left when they were recorded; note what has ended."""
        for asked in self._running:
            if asked.leaves:
                self._runner.cancel(asked.own)
        ended = [(a.ended_s, a) for a in self._running if a.ended_s is not None]
        self._running = [asked for asked in self._running if asked.ended_s is None]
        # Who waits for several answers thinks from the last one on.
        for ended_s, asked in sorted(ended, key=lambda pair: pair[0]):
            if asked.own.error is not None:
                raise asked.own.error
            self.schedule.end(asked.number, ended_s)


@dataclass(slots=True)
class _Line:
    """What one plan cost, and the commits between it and the next plan.

    Attributes:
        reused, from_disk: tokens that it restored.
        prefill_s: without the prompt's last token, which decodes with other answers.
        stored_bytes: at the end.
        evicted: tokens.
    """

    reused: int
    from_disk: int
    stored_bytes: int
    restore_s: float = 0.0
    prefill_s: float = 0.0
    evicted: int = 0


class _Ledger(Executor):
    """Keeps a line for each plan, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[_Line] = []

    def begin(self, engine: Engine, prompt: Prompt) -> Computation:
        if engine.disk is not None:
            engine.disk.flush()  # a simulation writes at once
        own = super().begin(engine, prompt)
        plan = own.prefill.plan
        self.lines.append(_Line(plan.reused, plan.disk_tokens, engine.store.nbytes))
        return own

    def store(self, own: Computation, length: int, use: Use) -> Commit:
        return self._counted(own, super().store(own, length, use))

    def end(self, own: Computation, answer: Sequence[int] | None, use: Use) -> Commit:
        line, prefill = self.lines[own.number], own.prefill
        line.restore_s, line.prefill_s = prefill.restore_s, prefill.compute_s
        return self._counted(own, super().end(own, answer, use))

    def _counted(self, own: Computation, commit: Commit) -> Commit:
        self.lines[-1].evicted += commit.evicted
        self.lines[-1].stored_bytes = own.engine.store.nbytes
        return commit


@dataclass(eq=False)
class _Asked:
    """A request on its way; all seconds since the replay began.

    Attributes:
        due: when the user sent it.
        filled: tokens of the prompt restored or computed so far.
        use: what the eviction policy was told at the latest commit.
    """

    number: int
    request: RenderedRequest
    due: float
    started: float
    progress: Progress
    own: Request = field(init=False)
    filled: int = 0
    use: Use = UNKNOWN
    first_s: float | None = None
    ended_s: float | None = None

    def of(self, engine: Engine) -> Request:
        """Make the request for a runner."""
        ids, prompt = self.request.answer.tolist(), self.request.prompt
        self.own = Request(
            engine,
            prompt,
            # A request for no token would wait until nothing else runs.
            len(ids) or (0 if prompt.pinned else 1),
            Forced(ids, greedy),
            (),
            frozenset(),
            self._put,
            self._done,
            use=self._use,
        )
        return self.own

    @property
    def planned(self) -> int:
        assert self.own.planned is not None
        return self.own.planned

    @property
    def leaves(self) -> bool:
        """Whether its client leaves now."""
        if self.own.planned is None or self.ended_s is not None:
            return False
        end = self.request.cut_off
        if end is None and not len(self.request.answer):
            end = len(self.request.prompt) - 1
        return end is not None and self.filled >= end

    def _use(self, running: bool) -> Use:
        """Return the use at the times of this replay, and keep it."""
        asked = replace(self.request.use, t=self.due)
        ended = perf_counter() - self.started
        self.use = asked.unfinished if running else replace(asked, ended=ended)
        return self.use

    def answered(self, trace: str, line: _Line) -> Answered:
        order = Order(planned=self.planned, stored=tuple(self.own.stored))
        assert self.ended_s is not None
        outcome = Outcome(
            reused_tokens=line.reused,
            stored_bytes=line.stored_bytes,
            evicted=line.evicted,
            restore_s=line.restore_s,
            prefill_s=line.prefill_s,
            ttft_s=None if self.first_s is None else self.first_s - self.due,
            disk_tokens=line.from_disk,
            arrived_s=self.due,
            total_s=self.ended_s - self.due,
        )
        request = replace(self.request, trace=trace, order=order, use=self.use)
        return Answered(self.number, request, outcome)

    def _put(self, item: Plan | PrefillProgress | int) -> None:
        if isinstance(item, PrefillProgress):
            self.filled += item.tokens
            self.progress(item.tokens)
        elif isinstance(item, int):
            if self.first_s is None:
                self.first_s = perf_counter() - self.started
            self.progress(1)

    def _done(self) -> None:
        self.ended_s = perf_counter() - self.started
        self.progress(1)  # the prompt's last token
