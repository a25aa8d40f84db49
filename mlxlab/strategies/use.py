"""What eviction is told of a request: who sent it, when, and how its answer ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

__all__ = ["UNKNOWN", "Learned", "Use"]

Learned: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]
"""What policies have learned, by their names: see ``Eviction.learned``."""


@dataclass(frozen=True, slots=True)
class Use:
    """One use of what is stored: a request, as it is known when it is committed.

    Attributes:
        agent: who asked: the session's id, ``/`` and the agent's id for a sub-agent;
            empty if it is not known.
        t: seconds when the request arrived, on any clock; None if it is not known.
        ended: seconds when its answer ended, on the same clock; None while it runs, and
            if it is not known.
        stop: the stop reason of the answer, as in the Messages API; empty while it
            runs, and if it is not known.
        tools: names of the tools that the answer calls, in order.
        side: whether it is a side request, such as one for a title, whose prompt is no
            turn of the session's conversation.
        running: whether its answer goes on: what has been computed is stored before.
        learned: what policies had learned from earlier traffic, where a server goes on
            from that. It comes with the first request, so that all who follow the
            server's requests, a replay of its recording too, begin as it did.
    """

    agent: str = ""
    t: float | None = None
    ended: float | None = None
    stop: str = ""
    tools: tuple[str, ...] = ()
    side: bool = False
    running: bool = False
    learned: Learned | None = None

    @property
    def last(self) -> float | None:
        """The latest time that is known of it."""
        return self.t if self.ended is None else self.ended

    @property
    def unfinished(self) -> Use:
        """The same request while its answer goes on."""
        return replace(self, ended=None, stop="", tools=(), running=True)

    def shifted(self, seconds: float) -> Use:
        """Return it on a clock that is ahead by this much."""
        if self.t is None:
            return self
        ended = None if self.ended is None else self.ended + seconds
        return replace(self, t=self.t + seconds, ended=ended)


UNKNOWN = Use()
"""A request of which nothing is known."""
