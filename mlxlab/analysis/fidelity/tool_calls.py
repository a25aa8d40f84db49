"""Reads the tool calls of an answer, and compares those of two answers."""

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
    """A tool call of an answer.

    Attributes:
        arguments: decoded; None if the call was malformed or cut off.
    """

    name: str
    arguments: Json | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether two answers call the same tools.

    Attributes:
        names: whether the tools and their order agree; None if the reference calls
            none.
        arguments: whether the arguments agree too; None if the reference has no
            complete call.
    """

    names: bool | None = None
    arguments: bool | None = None


def read_calls(
    grammar: Grammar, ids: Iterable[int], *, thinking: bool
) -> tuple[AskedCall, ...]:
    """Return the tool calls of an answer, incomplete ones included.

    Args:
        grammar: the grammar of the model.
        ids: ids of the answer, without the end of turn.
        thinking: whether the prompt leaves thinking open.
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
