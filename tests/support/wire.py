"""Requests as a coding agent sends them, written for the tests."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "name": "Bash",
        "description": "Run a command.\nIt prints what the command printed.",
        "input_schema": {
            "type": "object",
            "properties": {"command": {"type": "string", "description": "To run."}},
            "required": ["command"],
        },
    },
    {
        "name": "Fetch",
        "description": "Fetch a page, once it has been looked up.",
        "input_schema": {"type": "object", "properties": {}},
        "defer_loading": True,
    },
    {
        "name": "Read",
        "description": "Read a file.",
        "input_schema": {
            "type": "object",
            "properties": {"file_path": {"type": "string"}},
        },
    },
]
ENVIRONMENT = "# Surroundings\nThe folder is /tmp/demo.\nThe day is Monday."
ROLE = "You help with code. " * 6
MARKER = {"type": "ephemeral"}


def attribution(suffix: str) -> dict[str, Any]:
    text = (
        f"x-anthropic-billing-header: cc_version=2.1.330.{suffix}; cc_entrypoint=cli;"
    )
    return {"type": "text", "text": text}


def first_body(
    ask: str = "Why does the sum fail?", suffix: str = "a1b"
) -> dict[str, Any]:
    """Return a session's first request."""
    return {
        "model": "claude-test",
        "max_tokens": 1000,
        "thinking": {"type": "adaptive"},
        "system": [attribution(suffix), {"type": "text", "text": ROLE}],
        "tools": deepcopy(TOOLS),
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": ask}]},
            {
                "role": "system",
                "content": [
                    {"type": "text", "text": ENVIRONMENT, "cache_control": MARKER}
                ],
            },
        ],
    }


def next_body(
    body: dict[str, Any], answer: dict[str, Any], result: str
) -> dict[str, Any]:
    """Return the request that follows a tool's ``result``.

    As in the client, the environment turns from a list into a string, and the cache
    marker moves to the last block.
    """
    body = deepcopy(body)
    body["messages"][1]["content"] = ENVIRONMENT
    for message in body["messages"]:
        for block in message["content"]:
            if isinstance(block, dict):
                block.pop("cache_control", None)
    body["messages"].append({"role": "assistant", "content": answer["content"]})
    calls = [b for b in answer["content"] if b["type"] == "tool_use"]
    results = [
        {
            "type": "tool_result",
            "tool_use_id": call["id"],
            "content": result,
            "cache_control": MARKER,
        }
        for call in calls
    ] or [{"type": "text", "text": result, "cache_control": MARKER}]
    body["messages"].append({"role": "user", "content": results})
    return body


def answer(n: int = 0, thinking: str = "") -> dict[str, Any]:
    """Return a response message with an optional thought, a text and a call."""
    thought = {"type": "thinking", "thinking": thinking, "signature": "c2ln"}
    return {
        "role": "assistant",
        "content": [
            *([thought] if thinking else []),
            {"type": "text", "text": f"RenderedRequest {n}: let me look."},
            {
                "type": "tool_use",
                "id": f"toolu_{n}",
                "name": "Bash",
                "input": {"command": f"cat part{n}.py | head"},
            },
        ],
    }


def session(
    turns: int, ask: str = "Why does the sum fail?", suffix: str = "a1b"
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return requests and their answers; every third answer begins with a thought."""
    body, exchanges = first_body(ask, suffix), []
    for n in range(turns):
        reply = answer(n, thinking="Perhaps a sign is off." if n % 3 == 1 else "")
        exchanges.append((body, reply))
        body = next_body(body, reply, f"def part{n}(a, b):\n    return a - b * {n}\n")
    return exchanges
