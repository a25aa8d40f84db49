"""Generates one answer, from prompt to events, on the worker thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlxlab.decoding import CallEnd, CallStart, Decoder, Event
from mlxlab.engine import Engine, LogitsProcessor, PrefillProgress, Request, Sampler
from mlxlab.prompt import Prompt
from mlxlab.strategies import Plan
from mlxlab.strategies.use import Use

__all__ = ["Completed", "Item", "Job", "PromptPlanned", "StopReason", "request_of"]

StopReason: TypeAlias = Literal[
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "model_context_window_exceeded",
]


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to generate.

    Attributes:
        engine: returns the engine, after loading its model if necessary.
        prompt: the rendered prompt.
        decoder: makes a decoder for one answer.
        sampler: makes a sampler for one answer.
        processors: make logits processors for one answer.
        stop: ids that end the answer.
        max_tokens: most ids to generate.
        exhausted: stop reason of an answer of ``max_tokens`` ids.
        single_call: whether the answer ends with its first tool call.
    """

    engine: Callable[[], Engine]
    prompt: Prompt
    decoder: Callable[[], Decoder]
    sampler: Callable[[], Sampler]
    processors: Sequence[Callable[[], LogitsProcessor]]
    stop: frozenset[int]
    max_tokens: int
    exhausted: StopReason
    single_call: bool = False


@dataclass(frozen=True, slots=True)
class PromptPlanned:
    """The plan of the prompt, and the number of its tokens that will be kept."""

    plan: Plan
    kept: int


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of an answer.

    Attributes:
        stop_sequence: the sequence that matched.
        ids: the generated ids, the end of turn included.
    """

    reason: StopReason
    stop_sequence: str | None
    ids: tuple[int, ...]


Item: TypeAlias = PromptPlanned | PrefillProgress | tuple[Event, ...] | Completed
"""One item per id, with the events that the id completed; tuples may be empty."""


def request_of(job: Job, put: Callable[[Item], object]) -> Request:
    """Return the request for a job's tokens; its items are put as they come."""
    engine, answer = job.engine(), _Answer(job)

    def take(item: Plan | PrefillProgress | int) -> bool:
        if isinstance(item, Plan):
            put(PromptPlanned(item, engine.strategy.count_kept(item)))
        elif isinstance(item, PrefillProgress):
            put(item)
        else:
            put(answer.take(item))
        return answer.reason is not None

    def use(running: bool) -> Use:
        if running or request.cancelled:
            return Use(running=running)
        answer.finish()
        return Use(stop=answer.stop_reason, tools=tuple(answer.tools))

    def done() -> None:
        # The computed tokens are cached before any caller sees the end.
        if request.error is None and not request.cancelled:
            put(answer.finish())
            put(answer.completed(request.answer))

    request = Request(
        engine,
        job.prompt,
        job.max_tokens,
        job.sampler(),
        [make() for make in job.processors],
        job.stop,
        take,
        done,
        use=use,
    )
    return request


class _Answer:
    """Collects ids and decides the stop reason."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.decoder = job.decoder()
        self.reason: StopReason | None = None
        self.called = False
        self.tools: list[str] = []  # that it calls
        self._rest: tuple[Event, ...] | None = None

    def take(self, id: int) -> tuple[Event, ...]:
        if id in self.job.stop:
            self.reason = "end_turn"
            return ()
        events = self._seen(self.decoder.feed(id))
        if self.decoder.stopped is not None:
            self.reason = "stop_sequence"
        elif self.called and self.job.single_call:
            self.reason = "end_turn"
        return events

    def finish(self) -> tuple[Event, ...]:
        """Return the events behind the last id; a second time the same ones."""
        if self._rest is None:
            self._rest = self._seen(self.decoder.finish())
        return self._rest

    def completed(self, ids: Sequence[int]) -> Completed:
        return Completed(self.stop_reason, self.decoder.stopped, tuple(ids))

    @property
    def stop_reason(self) -> StopReason:
        """The reason to report: a completed call must run, whatever ended the answer.

        An answer cut off in the middle of a second call is an exception.
        """
        reason = self.reason or self.job.exhausted
        return "tool_use" if self.called and reason == "end_turn" else reason

    def _seen(self, events: Sequence[Event]) -> tuple[Event, ...]:
        self.called |= any(isinstance(e, CallEnd) and e.complete for e in events)
        self.tools += [e.name for e in events if isinstance(e, CallStart)]
        return tuple(events)
