"""A trace of two interleaved sessions and a sub-agent, written for the tests."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from mlxlab.traces import Exchange, Response, Trace
from tests.support import wire

__all__ = ["exchange", "small_trace", "small_traces"]


def exchange(
    id: int,
    body: dict[str, Any],
    reply: dict[str, Any] | None,
    session: str = "aaaaaaaa",
    agent: str = "",
) -> Exchange:
    headers = {"x-claude-code-session-id": session}
    if agent:
        headers["x-claude-code-agent-id"] = agent
    response = Response(float(id) + 0.5, 200, 0.1, reply) if reply else None
    path = "/v1/messages?beta=true"
    return Exchange(id, float(id), "POST", path, headers, body, response)


def small_trace(name: str = "small") -> Trace:
    """Return ten exchanges; every strategy hits on some and misses on others."""
    a = wire.session(4)
    b = wire.session(3, ask="Add a test.", suffix="9ff")
    agent = wire.session(2, ask="Find all sums.", suffix="777")
    for body, _ in agent:
        body["system"][1]["text"] = "You search code. " * 6
        body["tools"] = body["tools"][:1]
    plan = [
        (a[0], "aaaaaaaa", ""),
        (a[1], "aaaaaaaa", ""),
        (b[0], "bbbbbbbb", ""),
        (agent[0], "aaaaaaaa", "ag1"),
        (a[2], "aaaaaaaa", ""),
        (agent[1], "aaaaaaaa", "ag1"),
        (b[1], "bbbbbbbb", ""),
        (b[2], "bbbbbbbb", ""),
        (a[3], "aaaaaaaa", ""),
        (a[1], "cccccccc", ""),
    ]
    return Trace(
        name,
        tuple(
            exchange(i, *pair, session, agent)
            for i, (pair, session, agent) in enumerate(plan)
        ),
    )


def small_traces(*names: str) -> list[Trace]:
    """Return a trace for each name; their prompts differ from the first message on."""
    return [_about(small_trace(name)) for name in names]


def _about(trace: Trace) -> Trace:
    exchanges = []
    for own in trace.exchanges:
        body = deepcopy(own.body)
        assert body is not None
        block: Any = body["messages"][0]["content"][0]
        block["text"] = f"In {trace.name}: {block['text']}"
        exchanges.append(replace(own, body=body))
    return replace(trace, exchanges=tuple(exchanges))
