"""The events of a decoded answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

__all__ = [
    "CallEnd",
    "CallInput",
    "CallStart",
    "Event",
    "Stopped",
    "Text",
    "Thinking",
    "ThinkingEnd",
    "join_pieces",
]


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of thinking, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingEnd:
    """The end of thinking. Occurs once, even if the tags enclose no text.

    ``tokens`` are the ids generated for the thinking: from the opening tag, or from the
    first id if the prompt held that tag, to the closing tag. They are empty if a tag
    shares a token with other text, or if the thinking was never closed.
    """

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of visible text, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The start of a tool call; its input follows until :class:`CallEnd`."""

    name: str


@dataclass(frozen=True, slots=True)
class CallInput:
    """A piece of the call's input. All pieces joined are one JSON object."""

    json: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of a call.

    A call that is not ``complete`` was malformed or cut off. Its input has an extra
    member for this, and its text follows as :class:`Text`.
    """

    complete: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stop sequence was generated. No event follows."""

    sequence: str


Event: TypeAlias = (
    Thinking | ThinkingEnd | Text | CallStart | CallInput | CallEnd | Stopped
)


def join_pieces(events: Iterable[Event]) -> list[Event]:
    """Join adjacent events of one kind."""
    joined: list[Event] = []
    for kind, group in groupby(events, type):
        pieces = list(group)
        if kind is Thinking:
            joined.append(Thinking("".join(_texts(pieces))))
        elif kind is Text:
            joined.append(Text("".join(_texts(pieces))))
        elif kind is CallInput:
            joined.append(CallInput("".join(_texts(pieces))))
        else:
            joined.extend(pieces)
    return joined


def _texts(pieces: Iterable[Event]) -> Iterable[str]:
    for piece in pieces:
        match piece:
            case Thinking(text) | Text(text) | CallInput(text):
                yield text
