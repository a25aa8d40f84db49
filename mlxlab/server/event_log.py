"""What happens to the requests of a server, as it happens.

Threads may read the log while requests are answered. It holds the latest events only,
so its memory is bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from threading import Lock
from typing import Any, Self

from mlxlab.traces.trace import agent_of, session_of

__all__ = ["Asker", "Event", "EventLog", "Stage"]

#: Events that are kept: those of some thousand requests.
_KEPT = 20_000


class Stage(StrEnum):
    """What happens to a request, in this order. Progress comes once a chunk."""

    ARRIVED = "arrived"
    QUEUED = "queued"
    PLANNED = "planned"
    PROGRESS = "progress"
    FIRST_TOKEN = "first token"
    EVICTED = "evicted"
    ENDED = "ended"
    EXPLAINED = "explained"


@dataclass(frozen=True, slots=True)
class Asker:
    """Who sends a request, by its own claim.

    Attributes:
        session: the first 8 characters of the session id; ``session`` without one.
        agent: the same of the sub-agent's id; empty for the main loop.
    """

    session: str = "session"
    agent: str = ""

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
        facts: more of it: ``session``, ``agent`` and ``model`` where it arrived;
            ``alias``, ``strategy`` and ``prompt_tokens`` where it was queued;
            ``reused_tokens`` and ``disk_tokens`` where it was planned; ``done_tokens``,
            restored and computed so far, with progress; the fields of
            :class:`~mlxlab.server.metrics.Served` at its end.
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
        self._lock = Lock()
        self._requests = count(1)
        self._latest = 0

    def arrive(self, asker: Asker, model: str) -> int:
        """Note a request, and return its number."""
        request = next(self._requests)
        facts = {"session": asker.session, "agent": asker.agent, "model": model}
        self.add(request, Stage.ARRIVED, **facts)
        return request

    def add(self, request: int, stage: Stage, /, **facts: Any) -> None:
        """Note what happens to a request now."""
        with self._lock:
            self._latest += 1
            event = Event(self._latest, time.time(), request, stage, facts)
            self._events.append(event)

    def since(self, number: int = 0) -> list[Event]:
        """Return the events behind that number, if they are still kept."""
        with self._lock:
            missing = self._latest - max(number, 0)
            first = max(len(self._events) - missing, 0)
            return [self._events[i] for i in range(first, len(self._events))]
