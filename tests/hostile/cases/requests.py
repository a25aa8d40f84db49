"""Cases of requests whose JSON is broken, for both endpoints that take one."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

from tests.hostile.cases.exchange import Exchange, posted
from tests.hostile.cases.faults import break_bytes, break_value, encoded

__all__ = ["break_request", "broken"]

PATHS = ("/v1/messages", "/v1/messages/count_tokens")
BASE: dict[str, Any] = {
    "model": "default",
    "max_tokens": 3,
    "system": [{"type": "text", "text": "Be short."}],
    "messages": [
        {"role": "user", "content": "Read it."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Well.", "signature": ""},
                {"type": "tool_use", "id": "t", "name": "read", "input": {"a": [1]}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": "text"},
                {"type": "text", "text": "And?"},
            ],
        },
    ],
    "tools": [
        {
            "name": "read",
            "description": "Reads.",
            "input_schema": {"type": "object", "properties": {"a": {"type": "array"}}},
        }
    ],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "adaptive"},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["x"],
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 5,
    "output_config": {
        "effort": "low",
        "format": {
            "type": "json_schema",
            "schema": {"type": "object", "properties": {"b": {"type": "integer"}}},
        },
    },
    "context_management": {
        "edits": [{"type": "clear_tool_uses_20250919", "keep": {"value": 1}}]
    },
}

_LONG = range(8, 100_000)
_KEPT = ("model", "messages", "max_tokens")


def broken(chance: Random) -> dict[str, Any]:
    """Return a request with one to three faults."""
    body = copy.deepcopy(BASE)
    for key in chance.sample(sorted(body), 8):
        if key not in _KEPT:
            del body[key]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        break_value(body, chance)
    if body.get("max_tokens") in _LONG:
        body["max_tokens"] = _LONG.start  # seconds of work that is allowed
    return body


def break_request(chance: Random) -> tuple[Exchange, ...]:
    """One body for both endpoints, or one whose answer is streamed."""
    body = broken(chance)
    if chance.random() < 0.2:
        body.setdefault("stream", True)
    data = encoded(body)
    if chance.random() < 0.15:
        data = break_bytes(data, chance)
    if chance.random() < 0.1:
        first = posted(PATHS[0], data)
        at = chance.randrange(len(first))
        leaves = chance.choice((0, 1, 100, 500))
        return (Exchange((first[:at], first[at:]), leaves=leaves),)
    return tuple(Exchange((posted(path, data),)) for path in PATHS)
