"""Requests that are broken at random, from a seed: refused or answered, never worse."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.endpoint import Client
from tests.support.limited_server import LimitedServer, limited_server

CASES = 150
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
NASTY: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**64, 2**70, 1e308, 1e-320, "", "a", "\ud800", "\0"),
    *("\U0010ffff", "<|im_end|>", "{{ 1 / 0 }}", "a" * 5000, " " * 5000, "\u202e"),
    *([], {}, [[]], [1, "a", None], {"": ""}, {"type": "text"}, {"type": []}),
    *("any", "none", "tool", "enabled", "disabled", "object", "pattern", "$ref"),
    {"type": "text", "text": None},
    {"type": "image", "source": {}},
    {"type": "tool_use", "id": "", "name": "", "input": {"a": {"b": ["\ud800"]}}},
    {"type": "enabled", "budget_tokens": 2**40},
    {"type": "string", "pattern": "((a*)*)*b", "minLength": 10**9},
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
]


@pytest.fixture(scope="module")
def server() -> Iterator[LimitedServer]:
    with limited_server() as server:
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.printed


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from places(value[key])


def broken(chance: random.Random) -> dict[str, Any]:
    """Return a request with one to three faults."""
    body = copy.deepcopy(BASE)
    for key in chance.sample(sorted(body), 8):
        if key not in {"model", "messages", "max_tokens"}:
            del body[key]
    for _ in range(chance.randrange(1, 4)):
        container, key = chance.choice(list(places(body)))
        fault = chance.randrange(4)
        if fault == 0:
            del container[key]
        elif fault == 1 and isinstance(container, list):
            container.extend([container[key]] * 20)
        elif fault == 2 and isinstance(container, dict):
            container[chance.choice(["\ud800", "", "type", "a" * 300])] = container[key]
        else:
            container[key] = copy.deepcopy(chance.choice(NASTY))
    return body


def test_both_endpoints_refuse_the_same(server: LimitedServer) -> None:
    counts: Counter[tuple[int, int]] = Counter()
    with Client(server.url) as client:
        headers = {"content-type": "application/json"}
        for seed in range(CASES):
            data = json.dumps(broken(random.Random(seed))).encode()
            asked, counted = (
                client.post(path, content=data, headers=headers)
                for path in ("/v1/messages", "/v1/messages/count_tokens")
            )
            found = (asked.status_code, counted.status_code)
            counts[found] += 1
            said = asked.text + counted.text
            assert set(found) <= {200, 400, 404}, (seed, data[:2000], said[:500])
            if asked.status_code != counted.status_code:
                # A count needs no number of tokens to be generated.
                assert "max_tokens" in asked.json()["error"]["message"], (seed, said)
            if b'"stream": ' not in data and asked.status_code == 200:
                assert asked.json()["type"] == "message", (seed, said)
    assert counts[200, 200] > CASES // 10
    assert counts[400, 400] > CASES // 10
