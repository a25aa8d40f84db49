"""Reads request bodies, and refuses what is out of bounds before it costs anything.

Every check is cheaper than the step behind it: bytes are counted before they are
parsed, values before they are validated. Both endpoints that take prompts read their
bodies here, so they refuse the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from mlxlab.errors import RequestError
from mlxlab.limits import BLOCKS, MESSAGES, TOOLS
from mlxlab.rendering.messages import describe_errors
from mlxlab.server.json_schema import check_schema
from mlxlab.server.schema import TokenCountRequest
from mlxlab.web.json_shape import check_shape, name_place

__all__ = ["read_body"]

RequestT = TypeVar("RequestT", bound=TokenCountRequest)

#: Only an escape can write half a surrogate pair into a text that was UTF-8.
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_body(kind: type[RequestT], data: bytes) -> RequestT:
    """Return the request in a body.

    Args:
        kind: the schema.
        data: the body, JSON in UTF-8.

    Raises:
        RequestError: the message names the field and the limit.
    """
    text = _decoded(data)
    check_shape(text)
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
        check_schema(config.format.schema_)
    return request


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"body: not UTF-8 at byte {error.start}; give a JSON object in UTF-8"
        ) from None


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
                f"{name_place(place)}: half a surrogate pair; give Unicode text"
            )
        if isinstance(value, dict):
            waiting += (((*place, key), key) for key in value)
            waiting += (((*place, key), value[key]) for key in value)
        elif isinstance(value, list):
            waiting += (((*place, i), item) for i, item in enumerate(value))


def _check_counts(body: Mapping[str, Any]) -> None:
    messages, tools = _list(body.get("messages")), _list(body.get("tools"))
    for name, items, most in (
        ("messages", messages, MESSAGES),
        ("tools", tools, TOOLS),
    ):
        if len(items) > most:
            raise RequestError(f"{name}: {len(items):,} items; give at most {most:,}")
    blocks = 0
    for k, message in enumerate(messages):
        blocks += _count_blocks(message)
        if blocks > BLOCKS:
            raise RequestError(
                f"messages.{k}.content: more than {BLOCKS:,} blocks so far; "
                "join texts to fewer blocks"
            )


def _count_blocks(message: object) -> int:
    blocks = _list(_content(message))
    return len(blocks) + sum(len(_list(_content(block))) for block in blocks)


def _content(value: object) -> object:
    return value.get("content") if isinstance(value, dict) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
