"""Workloads: the requests of one cache, from traces in sequence or at the same time.

Requests of hashed traces are made when they are needed, so a month of them takes no
more memory than the sessions that run at the same time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol, TypeAlias

import numpy as np

from mlxlab.errors import TraceError
from mlxlab.prompt import Tokens
from mlxlab.replay.requests import RenderedRequest

__all__ = ["Numbers", "RenderedTrace", "Source", "Timed", "Workload"]

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
        digest: of trace, tokenizer and rules.
        timed: requests and seconds since the first of them.
    """

    name: str
    digest: str
    timed: tuple[tuple[float, RenderedRequest], ...] = field(repr=False)
    unit: int = 1

    def requests(self, numbers: Numbers) -> Timed:
        return iter(self.timed)


@dataclass(frozen=True)
class Workload:
    """Sources, in sequence or at the same time, into one cache.

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
        numbers = Numbers()
        waiting = iter([partial(source.requests, numbers) for source in self.sources])
        order = count()
        running: list[tuple[float, int, float, RenderedRequest, Timed]] = []

        def begin(now: float) -> None:
            """Start the next source that has requests."""
            for make in waiting:
                requests = make()
                first = next(requests, None)
                if first is not None:
                    start = now - first[0]
                    entry = (now, next(order), start, first[1], requests)
                    heapq.heappush(running, entry)
                    return

        for _ in range(self.users):
            begin(0.0)
        while running:
            now, turn, start, request, requests = heapq.heappop(running)
            yield request
            following = next(requests, None)
            if following is None:
                begin(now)
            else:
                entry = (start + following[0], turn, start, following[1], requests)
                heapq.heappush(running, entry)
