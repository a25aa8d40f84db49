"""Workloads: the requests of one cache, from traces in sequence or at the same time.

Requests of hashed traces are made when they are needed. So a month of traffic takes no
more memory than the sessions that run at the same time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mlxlab.errors import TraceError
from mlxlab.prompt import Prompt, Role, Segment, Tokens
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.commits import order_as_planned
from mlxlab.replay.requests import RenderedRequest, label_sessions, render_trace
from mlxlab.strategies.use import Use
from mlxlab.traces import Trace
from mlxlab.traces.hashed.trace import HashedRequest, HashedTrace
from mlxlab.traces.open import AnyTrace

__all__ = [
    "HashedSource",
    "NumberedRequest",
    "Numbers",
    "RenderedTrace",
    "Source",
    "Sources",
    "Timed",
    "Workload",
    "open_sources",
]

#: The id of a prompt's last tokens if they are less than a unit.
_REST = -1

Timed: TypeAlias = Iterator[tuple[float, RenderedRequest]]
"""Requests in order, each with the seconds since its trace began."""


class Numbers:
    """Numbers that no other trace has, in order of first use."""

    def __init__(self) -> None:
        self._count = count()

    def table(self) -> Callable[[Tokens], Tokens]:
        """Return a function that renumbers the ids of one trace."""
        table: Tokens = np.empty(0, np.int32)

        def renumber(ids: Tokens) -> Tokens:
            nonlocal table
            most = int(ids.max(initial=-1)) + 1
            if most > len(table):
                more = max(most, 2 * len(table)) - len(table)
                table = np.concatenate([table, np.full(more, -1, np.int32)])
            for new in dict.fromkeys(ids[table[ids] < 0].tolist()):
                table[new] = next(self._count)
            return table[ids]

        return renumber


class Source(Protocol):
    """A trace whose requests can be made repeatedly."""

    @property
    def name(self) -> str:
        """The name of the trace."""

    @property
    def digest(self) -> str:
        """A digest of the requests."""

    @property
    def unit(self) -> int:
        """Tokens that one id of its prompts stands for."""

    def requests(self, numbers: Numbers) -> Timed:
        """Return its requests; ids that are local to the trace are renumbered."""


@dataclass(frozen=True)
class RenderedTrace:
    """A recorded trace, rendered.

    Attributes:
        digest: digest of trace, tokenizer and rules.
        timed: requests in the order in which they were planned, each with the seconds
            since the first of them.
    """

    name: str
    digest: str
    timed: tuple[tuple[float, RenderedRequest], ...] = field(repr=False)
    unit: int = 1

    @classmethod
    def of(cls, trace: Trace, requests: Sequence[RenderedRequest], digest: str) -> Self:
        """Return a source of a trace's requests, given in order of arrival."""
        start = trace.inference[0].t
        times = {exchange.id: exchange.t - start for exchange in trace.inference}
        timed = [(times[own.id], own) for own in order_as_planned(requests)]
        return cls(trace.name, digest, tuple(timed))

    def requests(self, numbers: Numbers) -> Timed:
        return iter(self.timed)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedRequest(RenderedRequest):
    """One hashed request; its prompt holds a number for each unit of tokens.

    Attributes:
        length: prompt tokens.
        answered: tokens of the answer; 0 if they are not known.
        sequence: numbers of the whole units of prompt and answer.
        content: int64, shape ``[pieces, 3]``: the start of a piece of the prompt, its
            tokens, and a number that is equal for equal content; no pieces if the trace
            holds no hashes of content.
    """

    length: int
    answered: int
    sequence: Prompt
    content: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return self.length

    @property
    def answer_tokens(self) -> int:
        return self.answered

    @property
    def computed(self) -> Prompt:
        return self.sequence


@dataclass(frozen=True)
class HashedSource:
    """The requests of a hashed trace."""

    trace: HashedTrace

    @property
    def name(self) -> str:
        return self.trace.name

    @property
    def digest(self) -> str:
        return self.trace.digest

    @property
    def unit(self) -> int:
        return self.trace.unit

    def requests(self, numbers: Numbers) -> Timed:
        chained, content = numbers.table(), Numbers().table()
        for i, request in enumerate(self.trace):
            numbered = replace(request, chained=chained(request.chained))
            yield request.t, self._render(i, numbered, content)

    def _render(
        self, i: int, request: HashedRequest, content: Callable[[Tokens], Tokens]
    ) -> NumberedRequest:
        unit, ids = self.unit, request.chained
        whole, rest = divmod(request.tokens, unit)
        # The last token of an answer is never stored.
        stored = (request.tokens + max(request.answer - 1, 0)) // unit
        tail = np.array([_REST] if rest else [], np.int32)
        asked = np.concatenate([ids[:whole], tail])
        agent = f"/{request.agent[:9]}" if request.agent else ""
        session = ":".join(filter(None, (self.name, request.session))) + agent
        return NumberedRequest(
            session=session,
            id=i,
            prompt=Prompt(asked, _segments(request, len(asked), unit), False),
            answer=ids[whole:stored],
            unit=unit,
            use=Use(
                "" if request.session is None else session,
                request.t,
                request.ended,
                request.stop,
                request.tools,
                request.side,
            ),
            length=request.tokens,
            answered=request.answer,
            sequence=Prompt(ids[:stored], _segments(request, stored, unit), False),
            content=_pieces(request, unit, content),
        )


@dataclass(frozen=True)
class Workload:
    """The requests of all sources, in sequence or at the same time, for one cache.

    Each of ``users`` takes the next source when its current source ends.

    Raises:
        TraceError: no source, or sources of different units.
    """

    sources: Sequence[Source]
    users: int = 1

    def __post_init__(self) -> None:
        units = sorted({source.unit for source in self.sources})
        if len(units) != 1:
            found = ", ".join(map(str, units)) or "none"
            raise TraceError(
                f"traces: units of tokens: {found}; give traces of one unit"
            )

    @property
    def unit(self) -> int:
        """Tokens that one id of the prompts stands for."""
        return self.sources[0].unit

    def __iter__(self) -> Iterator[RenderedRequest]:
        """Yield the requests, all on one clock, which begins with the first."""
        for ahead, request in self.recorded():
            yield request.shifted(ahead)

    def recorded(self) -> Iterator[tuple[float, RenderedRequest]]:
        """Yield the requests on the clocks of their sources.

        Each comes with the seconds by which the common clock is ahead of its own.
        """
        numbers = Numbers()
        waiting = iter([partial(source.requests, numbers) for source in self.sources])
        order = count()
        running: list[tuple[float, int, _Running, RenderedRequest]] = []

        def begin(now: float) -> None:
            """Start the next source that has requests."""
            for make in waiting:
                requests = make()
                first = next(requests, None)
                if first is not None:
                    t, request = first
                    own = _Running(requests, now - t, now - (request.use.t or 0.0))
                    heapq.heappush(running, (now, next(order), own, request))
                    return

        for _ in range(min(self.users, len(self.sources))):
            begin(0.0)
        while running:
            now, turn, own, request = heapq.heappop(running)
            yield own.ahead, request
            following = next(own.requests, None)
            if following is None:
                begin(now)
            else:
                t, request = following
                heapq.heappush(running, (own.start + t, turn, own, request))


@dataclass(frozen=True, slots=True)
class _Running:
    """A source whose requests are being asked; seconds on the common clock.

    Attributes:
        start: when its trace began.
        ahead: seconds by which that clock is ahead of the one of its uses.
    """

    requests: Timed
    start: float
    ahead: float


Sources: TypeAlias = tuple[Source, ...]
"""The sources of a workload, in order."""


def open_sources(
    traces: Sequence[AnyTrace], renderer: Renderer, progress: bool
) -> Sources:
    """Return one source per trace, in order.

    Args:
        traces: recorded or hashed.
        renderer: renders the recorded traces.
        progress: whether to show a bar.

    Raises:
        MlxlabError: see :func:`mlxlab.replay.requests.render_trace`.
    """
    recorded = [trace for trace in traces if isinstance(trace, Trace)]
    requests = sum(len(trace.inference) for trace in recorded)
    with tqdm(
        total=requests, desc="rendering", disable=not progress or not requests
    ) as bar:
        rendered = [render_trace(trace, renderer, bar.update) for trace in recorded]
    named = iter(label_sessions(recorded, rendered))
    return tuple(
        _rendered(trace, next(named), renderer)
        if isinstance(trace, Trace)
        else HashedSource(trace)
        for trace in traces
    )


def _rendered(
    trace: Trace, requests: Sequence[RenderedRequest], renderer: Renderer
) -> RenderedTrace:
    digest = f"{trace.digest}-{renderer.model.digest}-{','.join(renderer.rules)}"
    return RenderedTrace.of(trace, requests, digest)


def _segments(request: HashedRequest, length: int, unit: int) -> tuple[Segment, ...]:
    """Return the parts of a prompt, to the unit; the rest is unknown."""
    segments: list[Segment] = []
    end = 0
    for role, tokens in request.roles:
        start, end = end, end + tokens
        first, last = start // unit, min(end // unit, length)
        if first < last:
            segments.append(Segment(str(role), role, first, last))
    known = segments[-1].stop if segments else 0
    if known < length:
        segments.append(Segment("messages", Role.UNKNOWN, known, length))
    return tuple(segments)


def _pieces(
    request: HashedRequest, unit: int, renumber: Callable[[Tokens], Tokens]
) -> NDArray[np.int64]:
    pieces: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    start = 0
    for (_, tokens), content in zip(request.roles, request.content, strict=False):
        offsets = np.arange(len(content)) * unit
        lengths = np.minimum(tokens - offsets, unit)
        pieces.append(np.stack([start + offsets, lengths, renumber(content)], axis=1))
        start += tokens
    return np.concatenate(pieces)
