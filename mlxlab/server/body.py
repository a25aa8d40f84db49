"""Reads request bodies, and refuses what is out of bounds before it costs anything.

Every check is cheaper than the step behind it: bytes are counted before they are
parsed, values before they are validated. Both endpoints that take prompts read their
bodies here, so they refuse the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, TypeVar

import numpy as np
from pydantic import ValidationError

from mlxlab.errors import RequestError
from mlxlab.rendering.messages import describe_errors
from mlxlab.server.json_schema import check_schema
from mlxlab.server.schema import TokenCountRequest

__all__ = ["LIMITS", "BodyLimits", "read_body"]

RequestT = TypeVar("RequestT", bound=TokenCountRequest)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits of a body's JSON; see docs/server.md.

    Attributes:
        values: most values in all lists and objects.
        depth: most lists and objects inside each other.
        messages: most messages.
        blocks: most blocks in all messages, those of tool results included.
        tools: most tools.
        schema_bytes: most bytes of the schema of an answer, without spaces.
    """

    values: int = 250_000
    depth: int = 128
    messages: int = 10_000
    blocks: int = 20_000
    tools: int = 2_000
    schema_bytes: int = 128 * 2**10


LIMITS = BodyLimits()

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_TOKEN = re.compile(rf"{_STRING.pattern}|[\[\]{{}},:]", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
#: Only an escape can write half a surrogate pair into a text that was UTF-8.
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Parts of a place that are named, and characters of each.
_PARTS, _PART = 5, 40


def read_body(kind: type[RequestT], data: bytes) -> RequestT:
    """Return the request in a body.

    Args:
        kind: the schema.
        data: the body, JSON in UTF-8.

    Raises:
        RequestError: the message names the field and the limit.
    """
    text = _decoded(data)
    _check_shape(text)
    value = _parsed(text)
    if _ESCAPED_SURROGATE.search(text):
        _check_unicode(value)
    if isinstance(value, dict):
        _check_counts(value)
    try:
        request = kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise RequestError(describe_errors(found)) from None
    config = request.output_config
    if config and config.format:
        check_schema(config.format.schema_, LIMITS.schema_bytes)
    return request


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"body: not UTF-8 at byte {error.start}; give a JSON object in UTF-8"
        ) from None


def _check_shape(text: str) -> None:
    """Bound the number of values and their depth, without parsing them."""
    bare: list[str] = []
    position = 0
    # An object has a string for its key besides its value.
    for match in islice(_STRING.finditer(text), 2 * LIMITS.values + 1):
        bare.append(text[position : match.start()])
        position = match.end()
    if len(bare) > 2 * LIMITS.values:
        raise _excess(text)
    outside = "".join([*bare, text[position:]]).encode()
    if sum(map(outside.count, (b",", b"[", b"{"))) > LIMITS.values:
        raise _excess(text)
    brackets = np.frombuffer(outside.translate(None, _NO_BRACKETS), dtype=np.uint8)
    opens = np.isin(brackets, np.frombuffer(b"[{", dtype=np.uint8))
    depths = np.where(opens, 1, -1).cumsum()
    if depths.size and depths.max() > LIMITS.depth:
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
        if len(place) > LIMITS.depth:
            return RequestError(
                f"{_named(place)}: lists and objects nested more than {LIMITS.depth} "
                "deep; give a flatter value"
            )
        values += token in "[{,"
        if values > LIMITS.values:
            break
    return RequestError(
        f"{_named(place[:1])}: the body has more than {LIMITS.values:,} values; "
        "give fewer, longer ones"
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        problem = error.msg
    except (ValueError, RecursionError) as error:  # an integer of 5,000 digits
        problem = str(error).partition(";")[0]
    raise RequestError(f"body: not JSON: {problem}; give a JSON object")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _check_unicode(value: Any) -> None:
    """Refuse half a surrogate pair in any key or string: nothing can encode it."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str) and _SURROGATE.search(value):
            raise RequestError(
                f"{_named(place)}: half a surrogate pair; give Unicode text"
            )
        if isinstance(value, dict):
            waiting += (((*place, key), key) for key in value)
            waiting += (((*place, key), value[key]) for key in value)
        elif isinstance(value, list):
            waiting += (((*place, i), item) for i, item in enumerate(value))


def _check_counts(body: Mapping[str, Any]) -> None:
    messages, tools = _list(body.get("messages")), _list(body.get("tools"))
    for name, items, most in (
        ("messages", messages, LIMITS.messages),
        ("tools", tools, LIMITS.tools),
    ):
        if len(items) > most:
            raise RequestError(f"{name}: {len(items):,} items; give at most {most:,}")
    blocks = 0
    for k, message in enumerate(messages):
        blocks += _count_blocks(message)
        if blocks > LIMITS.blocks:
            raise RequestError(
                f"messages.{k}.content: more than {LIMITS.blocks:,} blocks so far; "
                "join texts to fewer blocks"
            )


def _count_blocks(message: object) -> int:
    blocks = _list(_content(message))
    return len(blocks) + sum(len(_list(_content(block))) for block in blocks)


def _content(value: object) -> object:
    return value.get("content") if isinstance(value, dict) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _named(place: Iterable[object]) -> str:
    """Return a place in one short line, whatever the client calls its keys."""
    first, *others = [*islice(place, _PARTS)] or [0]
    if not isinstance(first, str):
        return "body"  # not an object, so it has no fields
    return ".".join(_printable(str(part)) for part in (first, *others))


def _printable(text: str) -> str:
    cut = text if len(text) <= _PART else f"{text[:_PART]}…"
    if cut.isprintable():
        return cut
    return cut.encode("ascii", "backslashreplace").decode()
