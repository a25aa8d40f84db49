"""Turns: when each of several users sends its next request."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxlab.traces import Exchange, Trace

__all__ = ["Asked", "Schedule", "Turn", "follow", "list_turns", "think_only"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user waits for before it sends a request.

    Attributes:
        number: of the request, among those of all traces.
        after: numbers of the requests whose answers have to end before.
        think_s: recorded seconds between the last of these answers and the request;
            without any, between the start of the trace and the request.
    """

    number: int
    after: tuple[int, ...]
    think_s: float


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked, and when; seconds on any clock.

    Attributes:
        agent: a sub-agent's id; empty for the main loop.
        ended: when its answer ended; when it arrived, if no end is known.
    """

    session: str
    agent: str
    t: float
    ended: float


def list_turns(traces: Sequence[Trace]) -> list[list[Turn]]:
    """Return the turns of each trace, in order of arrival.

    A request waits for answers that had ended when it was recorded:

    - for those of its own agent;
    - in the main loop also for the last answer of each sub-agent;
    - if there is none yet, a sub-agent waits for the main loop of its session, and a
      session for the others of its trace.

    Where a trace has recorded the order of plans, requests that were never planned have
    no turn.
    """
    turns, start = [], 0
    for trace in traces:
        exchanges = trace.inference
        planned = [i for i, own in enumerate(exchanges) if _is_planned(own)]
        numbers = planned or list(range(len(exchanges)))
        asked = [_asked(exchanges[i]) for i in numbers]
        turns.append(
            [
                Turn(
                    start + numbers[turn.number],
                    tuple(start + numbers[j] for j in turn.after),
                    turn.think_s,
                )
                for turn in follow(asked)
            ]
        )
        start += len(exchanges)
    return turns


def follow(asked: Sequence[Asked], start: int = 0) -> list[Turn]:
    """Return the turns of one trace's requests, given in order of arrival.

    Args:
        asked: who asked, and when.
        start: number of the first request.
    """
    return [
        Turn(start + i, tuple(start + j for j in after), think_s)
        for i, (after, think_s) in enumerate(_Recorded(asked))
    ]


def think_only(schedule: Schedule) -> float:
    """Return the seconds of a replay whose answers take none; uses the schedule up."""
    now = 0.0
    schedule.start(now)
    while schedule.next_due is not None:
        now = schedule.next_due
        for _, number in schedule.take(now):
            schedule.end(number, now)
    return now


def _asked(exchange: Exchange) -> Asked:
    # Where no end is known, thinking begins with the request.
    ended = exchange.response.t if exchange.response else exchange.t
    return Asked(exchange.session, exchange.agent, exchange.t, ended)


def _is_planned(exchange: Exchange) -> bool:
    return exchange.response is not None and exchange.response.order is not None


class _Recorded:
    """The requests of a trace, in order of arrival, as arrays."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        sessions = [own.session for own in asked]
        agents = [(own.session, own.agent) for own in asked]
        last = {agent: i for i, agent in enumerate(agents)}
        self.session = _numbered(sessions)
        self.agent = _numbered(agents)
        self.is_main = np.array([not agent for _, agent in agents], bool)
        self.is_last = np.array([last[a] == i for i, a in enumerate(agents)], bool)
        self.start = np.array([own.t for own in asked])
        ends = [own.ended for own in asked]
        self.end: NDArray[np.float64] = np.maximum(ends, self.start)

    def __iter__(self) -> Iterator[tuple[list[int], float]]:
        """Yield the requests that each waits for, and the seconds after them."""
        for i, now in enumerate(self.start):
            ended = self.end[:i] <= now
            for own, asked in self._circles(i):
                found = np.flatnonzero(ended & asked)
                if len(found):
                    think_s = now - self.end[found].max()
                    yield self._without_known(found, own).tolist(), float(think_s)
                    break
            else:
                yield [], float(now - self.start[0])

    def _circles(self, i: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield whose answers a request may wait for, in order of preference.

        Each with those among them that have waited for the same answers.
        """
        session = self.session[:i] == self.session[i]
        own = self.agent[:i] == self.agent[i]
        main = session & self.is_main[:i]
        if self.is_main[i]:
            yield main, main | session & self.is_last[:i]
        else:
            yield own, own
            yield main, main
        nothing = np.zeros(i, bool)
        yield nothing, ~nothing

    def _without_known(
        self, found: NDArray[np.int64], own: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Leave out the answers that the latest of its own requests waited for."""
        before = found[own[found]]
        if not len(before):
            return found
        latest = before[-1]
        since = self.end[found] > self.start[latest]
        return np.asarray(found[since | (found >= latest)])


class Schedule:
    """Says when requests are sent, by any clock.

    Each user takes the next trace when its current one has ended.

    Args:
        traces: the turns of each.
        users: how many traces run at the same time.
        think_times: factor on the recorded seconds; 0 for none.
    """

    def __init__(
        self, traces: Sequence[Sequence[Turn]], users: int, think_times: float = 1.0
    ) -> None:
        self.think_times = think_times
        own = [turns for turns in traces if turns]
        self._first = min(users, len(own))
        self._waiting = iter(own)
        self._due: list[tuple[float, int]] = []
        self._missing: dict[int, int] = {}  # answers that a request still waits for
        self._followers: dict[int, list[Turn]] = defaultdict(list)
        self._unfinished: dict[int, set[int]] = {}  # of the same trace

    @property
    def next_due(self) -> float | None:
        """When the next request is sent; None if all wait for answers, or are sent."""
        return self._due[0][0] if self._due else None

    def start(self, now: float) -> None:
        """Let each user take its first trace."""
        for _ in range(self._first):
            self._begin(now)

    def take(self, now: float) -> Iterator[tuple[float, int]]:
        """Yield when each due request was to be sent, and its number, in order."""
        while self._due and self._due[0][0] <= now:
            yield heapq.heappop(self._due)

    def end(self, number: int, now: float) -> None:
        """Note that the answer of a request has ended."""
        for turn in self._followers.pop(number, ()):
            self._missing[turn.number] -= 1
            if not self._missing[turn.number]:
                self._queue(turn, now)
        unfinished = self._unfinished.pop(number)
        unfinished.discard(number)
        if not unfinished:
            self._begin(now)

    def _begin(self, now: float) -> None:
        """Start the next trace, if one is left."""
        turns = next(self._waiting, ())
        unfinished = {turn.number for turn in turns}
        for turn in turns:
            self._unfinished[turn.number] = unfinished
            self._missing[turn.number] = len(turn.after)
            for number in turn.after:
                self._followers[number].append(turn)
            if not turn.after:
                self._queue(turn, now)

    def _queue(self, turn: Turn, now: float) -> None:
        due = now + turn.think_s * self.think_times
        heapq.heappush(self._due, (due, turn.number))


def _numbered(names: Sequence[object]) -> NDArray[np.int64]:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)
