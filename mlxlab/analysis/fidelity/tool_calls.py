"""Which tools an answer calls, and whether two answers call the same.

Knows token ids and a model's grammar; nothing of where an answer came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from mlxlab.decoding import (
    CallEnd,
    CallInput,
    CallStart,
    Decoder,
    Grammar,
    join_pieces,
)
from mlxlab.traces.schema import Json

__all__ = ["Agreement", "AskedCall", "agree", "read_calls"]


@dataclass(frozen=True, slots=True)
class AskedCall:
    """A call that an answer makes.

    Attributes:
        arguments: decoded; None if the call was malformed or cut off.
    """

    name: str
    arguments: Json | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether an answer calls what a reference calls.

    Attributes:
        names: the same tools in the same order; None if the reference calls none.
        arguments: the same, with the same arguments; None if the reference has no
            complete call.
    """

    names: bool | None = None
    arguments: bool | None = None


def read_calls(
    grammar: Grammar, ids: Iterable[int], *, thinking: bool
) -> tuple[AskedCall, ...]:
    """The tool calls of an answer, complete ones or not.

    Args:
        grammar: of the model that answered.
        ids: of the answer, without the end of turn.
        thinking: whether the prompt left reasoning open.
    """
    decoder = Decoder(grammar, thinking=thinking)
    pieces = [*chain.from_iterable(map(decoder.feed, ids)), *decoder.finish()]
    calls: list[AskedCall] = []
    name, text = "", ""
    for event in join_pieces(pieces):
        match event:
            case CallStart(name):
                text = ""
            case CallInput(text):
                pass
            case CallEnd(complete):
                calls.append(AskedCall(name, json.loads(text) if complete else None))
    return tuple(calls)


def agree(reference: Iterable[AskedCall], other: Iterable[AskedCall]) -> Agreement:
    """Compare the calls of two answers."""
    reference, other = tuple(reference), tuple(other)
    if not reference:
        return Agreement()
    names = [call.name for call in reference] == [call.name for call in other]
    complete = [call for call in reference if call.arguments is not None]
    if not complete:
        return Agreement(names)
    return Agreement(names, complete == [c for c in other if c.arguments is not None])
