"""A protocol in which a server is asked: the form of requests and of streamed events.

Every protocol starts from a recorded Messages request, so that all servers get the same
conversation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

__all__ = ["Dialect", "Usage", "read_count"]

Json: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Usage:
    """A server's report on a prompt.

    Attributes:
        prompt: its tokens.
        reused: the tokens that were not computed again; None if it does not say.
    """

    prompt: int
    reused: int | None

    def updated(self, later: Self) -> Self:
        """Return the report after a later event, which may repeat a part of it only."""
        reused = self.reused if later.reused is None else later.reused
        return type(self)(max(self.prompt, later.prompt), reused)


def read_count(value: Json) -> int | None:
    """Return a count of tokens; None for what is none."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


class Dialect(ABC):
    """The form of a request, and the events of an answer that matter.

    Attributes:
        path: the path that requests are sent to.
    """

    path: ClassVar[str]

    @abstractmethod
    def request(
        self, body: Mapping[str, Json], model: str, max_tokens: int = 1
    ) -> dict[str, Json]:
        """Translate a Messages request, for streamed tokens of ``model``.

        Without a model the request leaves the choice to the server, as far as the
        protocol can.

        Raises:
            RequestError: ``body`` is not a Messages request, or holds content that the
                protocol has no place for.
        """

    def headers(self, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return those of a request's recorded headers that the protocol has."""
        return {}

    @abstractmethod
    def has_text(self, event: Mapping[str, Json]) -> bool:
        """Return whether the event has a piece of the answer."""

    @abstractmethod
    def is_end(self, event: Mapping[str, Json]) -> bool:
        """Return whether the event ends the answer.

        The end implies a token too, which may have no visible text, such as half a
        character or hidden thinking.
        """

    @abstractmethod
    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        """Return the usage in an event; None if it reports no prompt tokens."""

    @abstractmethod
    def generated(self, event: Mapping[str, Json]) -> int | None:
        """Return the answer's tokens; None if the event does not report them."""
