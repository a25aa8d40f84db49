"""What happens to the requests of a server, as it happens.

Threads may read the log while requests are answered. It holds the latest events only,
so its memory is bounded.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from threading import Condition
from typing import Any, Self

from mlxlab.traces.trace import agent_of, session_of

__all__ = ["Asker", "Event", "EventLog", "Stage"]

#: Events that are kept: those of some thousand requests.
_KEPT = 20_000


class Stage(StrEnum):
    """What happens to a request, in this order.

    Progress comes once a chunk. An eviction comes for each request whose tokens went.
    The worker notes it at once, so it may overtake what the event loop has to note.
    """

    ARRIVED = "arrived"
    QUEUED = "queued"
    PLANNED = "planned"
    PROGRESS = "progress"
    FIRST_TOKEN = "first token"
    EVICTED = "evicted"
    ENDED = "ended"
    EXPLAINED = "explained"


#: Stages of a request that waits for its first token.
_WAITING = {Stage.ARRIVED, Stage.QUEUED, Stage.PLANNED, Stage.PROGRESS}


@dataclass(frozen=True, slots=True)
class Asker:
    """Who sends a request, by its own claim.

    Attributes:
        session: the first 8 characters of the session id; ``session`` without one.
        agent: the same of the sub-agent's id; empty for the main loop.
    """

    session: str = "session"
    agent: str = ""

    @property
    def name(self) -> str:
        """The session, and the sub-agent behind ``/``, as in replays."""
        return f"{self.session}/{self.agent}" if self.agent else self.session

    @classmethod
    def of(cls, headers: Mapping[str, str], body: Mapping[str, Any]) -> Self:
        """Return who sends a request with these headers, in lower case, and body."""
        return cls(session_of(headers, body), agent_of(headers)[:8])


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a request.

    Attributes:
        number: counts the events of a server, from 1.
        t: Unix seconds.
        request: counts the requests of a server, from 1.
        stage: what happened.
        facts: more of it, by stage.

            - arrived: ``session``, ``agent`` and ``model``.
            - queued: ``alias``, ``strategy``, ``prompt_tokens``, and ``behind``, the
              request that it waits for; None if it waits for none.
            - planned: ``reused_tokens``, ``disk_tokens``, and ``spans``, see
              :func:`~mlxlab.server.strip.make_strip`.
            - progress: ``done_tokens``, restored and computed so far.
            - evicted, by this request's commit: ``tokens``; ``of``, the request that
              had stored them, None if it is unknown; ``tier``.
            - ended: the fields of :class:`~mlxlab.server.metrics.Served`.
            - explained: see :meth:`~mlxlab.server.explainer.Explanation.facts`.
    """

    number: int
    t: float
    request: int
    stage: Stage
    facts: Mapping[str, Any] = field(default_factory=dict)


class EventLog:
    """The latest events, oldest first.

    Args:
        kept: most events.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._events: deque[Event] = deque(maxlen=kept)
        self._changed = Condition()
        self._requests = count(1)
        self._latest = 0
        #: The latest stage of each request that has not ended, oldest first.
        self._open: dict[int, Stage] = {}
        #: Since when no request waits for its first token, by the monotonic clock.
        self._quiet_from = -math.inf

    def arrive(self, asker: Asker, model: str) -> int:
        """Note a request, and return its number."""
        request = next(self._requests)
        facts = {"session": asker.session, "agent": asker.agent, "model": model}
        self.add(request, Stage.ARRIVED, **facts)
        return request

    def add(self, request: int, stage: Stage, /, **facts: Any) -> None:
        """Note what happens to a request now."""
        with self._changed:
            self._latest += 1
            event = Event(self._latest, time.time(), request, stage, facts)
            self._events.append(event)
            if stage is Stage.ENDED:
                self._open.pop(request, None)
            elif stage in _WAITING or stage is Stage.FIRST_TOKEN:
                self._open[request] = stage
            self._note_quiet()
            self._changed.notify_all()

    def _note_quiet(self) -> None:
        if not _WAITING.isdisjoint(self._open.values()):
            self._quiet_from = math.inf
        elif self._quiet_from == math.inf:
            self._quiet_from = time.monotonic()

    def ahead(self, *, full: bool) -> int | None:
        """Return the request that one queued now waits for; None if there is none.

        That is the last one whose prompt is still to be computed.

        Args:
            full: whether no further answer may run; then it is the oldest otherwise.
        """
        with self._changed:
            for request, stage in reversed(self._open.items()):
                if stage in _WAITING and stage is not Stage.ARRIVED:
                    return request
            return next(iter(self._open), None) if full else None

    def wait_for_quiet(self, seconds: float, *, settled: float = 0.0) -> bool:
        """Wait until no request waits for its first token; return whether that is so.

        Args:
            seconds: most to wait.
            settled: seconds that it has to have been so.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while (now := time.monotonic()) < self._quiet_from + settled:
                if now >= end:
                    return False
                self._changed.wait(min(end, self._quiet_from + settled) - now)
            return True

    def since(self, number: int = 0) -> list[Event]:
        """Return the events behind that number, if they are still kept."""
        with self._changed:
            missing = self._latest - max(number, 0)
            first = max(len(self._events) - missing, 0)
            return [self._events[i] for i in range(first, len(self._events))]
