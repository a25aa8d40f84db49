"""Traffic: the requests of several traces, numbered, and the order of each cache's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TypeAlias

from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.turns import Schedule, Turn, list_turns
from mlxlab.replay.workload import RenderedTrace, Workload
from mlxlab.traces import Trace

__all__ = ["Orders", "Rendered", "Rules", "Traffic"]

Rules: TypeAlias = tuple[str, ...]
Rendered: TypeAlias = Sequence[Sequence[RenderedRequest]]
"""The requests of each trace, in order of arrival."""
Orders: TypeAlias = tuple[tuple[int, ...], ...]
"""For each cache the numbers of its requests, in order of their plans."""


class Traffic:
    """The requests of several traces, for one cache each or for a common one.

    Args:
        traces: in order.
        rendered: their requests under each set of rules.
        users: how many traces run at the same time into one cache; None for an empty
            cache per trace.
        think_times: see :class:`Schedule`.

    Attributes:
        requests: by rules, then by number. Numbers count the requests of all traces.
        orders: of requests one after another; of users, by their recorded times.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        rendered: Mapping[Rules, Rendered],
        users: int | None = None,
        think_times: float = 1.0,
    ) -> None:
        self.users = users
        self.think_times = think_times
        first = next(iter(rendered.values()))
        self._turns: list[list[Turn]] = list_turns(traces) if users else []
        numbers = {id(own): i for i, own in enumerate(chain.from_iterable(first))}
        sources = [
            RenderedTrace.of(trace, own, trace.digest)
            for trace, own in zip(traces, first, strict=True)
        ]
        caches = (
            [Workload(sources, users)] if users else [Workload([s]) for s in sources]
        )
        found = [
            [(numbers[id(own)], ahead) for ahead, own in workload.recorded()]
            for workload in caches
        ]
        self.orders: Orders = tuple(tuple(i for i, _ in cache) for cache in found)
        clocks = dict(chain.from_iterable(found))
        self.requests = {
            rules: tuple(
                request.shifted(clocks.get(i, 0.0))
                for i, request in enumerate(chain.from_iterable(own))
            )
            for rules, own in rendered.items()
        }

    def schedule(self) -> Schedule:
        """Return when live users send the requests; there have to be users."""
        assert self.users is not None
        return Schedule(self._turns, self.users, self.think_times)
