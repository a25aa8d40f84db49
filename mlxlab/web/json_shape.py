"""Bounds the number and the depth of a JSON text's values, without parsing it.

A parsed value takes up to a hundred times the bytes of its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

import numpy as np

from mlxlab.errors import RequestError
from mlxlab.limits import BODY_DEPTH, BODY_VALUES
from mlxlab.printable import printable

__all__ = ["check_shape", "name_place"]

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_TOKEN = re.compile(rf"{_STRING.pattern}|[\[\]{{}},:]", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
#: Parts of a place that are named, and characters of each.
_PARTS, _PART = 5, 40


def check_shape(text: str) -> None:
    """Refuse a text with too many values, or too deep ones.

    Args:
        text: should be JSON. Of any other text, what looks like JSON is counted.

    Raises:
        RequestError: the message names the place and the limit.
    """
    bare: list[str] = []
    position = 0
    # An object has a string for its key besides its value.
    for match in islice(_STRING.finditer(text), 2 * BODY_VALUES + 1):
        bare.append(text[position : match.start()])
        position = match.end()
    if len(bare) > 2 * BODY_VALUES:
        raise _excess(text)
    outside = "".join([*bare, text[position:]]).encode(errors="replace")
    if sum(map(outside.count, (b",", b"[", b"{"))) > BODY_VALUES:
        raise _excess(text)
    brackets = np.frombuffer(outside.translate(None, _NO_BRACKETS), dtype=np.uint8)
    opens = np.isin(brackets, np.frombuffer(b"[{", dtype=np.uint8))
    depths = np.where(opens, 1, -1).cumsum()
    if depths.size and depths.max() > BODY_DEPTH:
        raise _excess(text)


def _excess(text: str) -> RequestError:
    """Name the place at which a text exceeds its limits."""
    place: list[str | int] = []
    string, values = "", 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "[{":
            place.append(0 if token == "[" else "")
        elif token in "]}":
            del place[-1:]
        elif token == ":" and place:
            place[-1] = string[1:-1]
        elif token == "," and place and isinstance(place[-1], int):
            place[-1] += 1
        string = token
        if len(place) > BODY_DEPTH:
            return RequestError(
                f"{name_place(place)}: lists and objects nested more than {BODY_DEPTH} "
                "deep; give a flatter value"
            )
        values += token in "[{,"
        if values > BODY_VALUES:
            break
    return RequestError(
        f"{name_place(place[:1])}: the body has more than {BODY_VALUES:,} values; "
        "give fewer, longer ones"
    )


def name_place(place: Iterable[object]) -> str:
    """Return a place in one short line, whatever the client calls its keys.

    Args:
        place: keys and indices, outermost first.
    """
    first, *others = [*islice(place, _PARTS)] or [0]
    if not isinstance(first, str):
        return "body"  # not an object, so it has no fields
    return ".".join(_part(str(part)) for part in (first, *others))


def _part(text: str) -> str:
    cut = text if len(text) <= _PART else f"{text[:_PART]}…"
    return printable(cut).replace("\n", "\\n")
