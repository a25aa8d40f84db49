"""When requests reach a simulated server: after think times, or at a given rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mlxlab.errors import TraceError
from mlxlab.prompt import Tokens
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.turns import Asked, Schedule, Turn, follow
from mlxlab.replay.workload import NumberedRequest, Numbers, Source

__all__ = ["Poisson", "Sessions"]


class Poisson:
    """Requests that come by chance, however long the answers take.

    Args:
        requests: how many; they come in the order of their numbers.
        rate: mean of the requests in a second.
        seed: of the times.
    """

    def __init__(self, requests: int, rate: float, seed: int = 0) -> None:
        pauses = np.random.default_rng(seed).exponential(1 / rate, requests)
        self._due = np.cumsum(pauses).tolist()
        self._next = 0

    @property
    def next_due(self) -> float | None:
        """When the next request is sent; None if all have been."""
        return self._due[self._next] if self._next < len(self._due) else None

    def start(self, now: float) -> None:
        """Do nothing: the first request waits too."""

    def take(self, now: float) -> Iterator[tuple[float, int]]:
        """Yield when each due request was to be sent, and its number."""
        while (due := self.next_due) is not None and due <= now:
            self._next += 1
            yield due, self._next - 1

    def end(self, number: int, now: float) -> None:
        """Do nothing: no request waits for an answer."""


class Sessions:
    """The sessions of traces, one for each user.

    Where there are fewer traces than users, traces are taken again with other token
    ids: such a copy shares nothing with the others, as another project would.

    Args:
        sources: the traces.
        users: how many run at the same time.

    Attributes:
        requests: by number.

    Raises:
        TraceError: too many copies for the range of ids.
    """

    def __init__(self, sources: Sequence[Source], users: int) -> None:
        self.users = users
        self.requests: list[RenderedRequest] = []
        self._turns: list[list[Turn]] = []
        numbers, width = Numbers(), 0
        for i in range(max(users, len(sources))):
            timed = list(sources[i % len(sources)].requests(numbers))
            own = [_lean(request) for _, request in timed]
            if i < len(sources):
                width = max(width, *(int(r.computed.tokens.max()) + 1 for r in own))
            elif not isinstance(own[0], NumberedRequest):
                own = [_moved(request, i // len(sources) * width) for request in own]
            asked = [_asked(t, request) for t, request in timed]
            order = sorted(range(len(own)), key=lambda i: asked[i].t)
            self._turns.append(follow([asked[i] for i in order], len(self.requests)))
            self.requests.extend(own[i] for i in order)

    def schedule(self, think_times: float = 1.0) -> Schedule:
        """Return when the users send the requests.

        Args:
            think_times: factor on the recorded seconds of thinking.
        """
        return Schedule(self._turns, self.users, think_times)


def _asked(t: float, request: RenderedRequest) -> Asked:
    session, _, agent = request.session.partition("/")
    use = request.use
    if use.t is None or use.ended is None:
        return Asked(session, agent, t, t)
    return Asked(session, agent, t, t + use.ended - use.t)


def _lean(request: RenderedRequest) -> RenderedRequest:
    """Return a request without the hashes of its content, which no strategy reads."""
    if isinstance(request, NumberedRequest):
        return replace(request, content=np.empty((0, 3), np.int64))
    return replace(request, order=None) if request.cut_off is None else request


def _moved(request: RenderedRequest, by: int) -> RenderedRequest:
    def move(ids: Tokens) -> Tokens:
        if len(ids) and int(ids.max()) + by > np.iinfo(np.int32).max:
            raise TraceError("traces: too many users for so few; give more traces")
        return (ids + np.int32(by)).astype(np.int32)

    prompt = replace(request.prompt, tokens=move(request.prompt.tokens))
    use = request.use
    if use.agent:  # another user's
        use = replace(use, agent=f"{use.agent}+{by}")
    return replace(request, prompt=prompt, answer=move(request.answer), use=use)
