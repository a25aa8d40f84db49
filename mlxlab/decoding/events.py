"""What a decoder says about an answer, piece by piece.

Knows nothing of tokens, tags and wire formats.
"""

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
    """A piece of reasoning, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingEnd:
    """Reasoning is over. Comes once, also where there was none between the tags.

    ``tokens`` are the ids generated for it: from the opening tag, or from the first
    id if the prompt held that tag, to the closing tag. Empty if a tag shares a token
    with other text, or if reasoning was never closed.
    """

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of visible text, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins; its input follows until :class:`CallEnd`."""

    name: str


@dataclass(frozen=True, slots=True)
class CallInput:
    """A piece of the call's input. All of them joined are one JSON object."""

    json: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is over.

    If it is not ``complete``, it was malformed or cut off: its input says so in a
    member of its own, and its text follows as :class:`Text`.
    """

    complete: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stop sequence was generated. Nothing follows."""

    sequence: str


Event: TypeAlias = (
    Thinking | ThinkingEnd | Text | CallStart | CallInput | CallEnd | Stopped
)


def join_pieces(events: Iterable[Event]) -> list[Event]:
    """The same events with adjacent pieces of one kind joined."""
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
