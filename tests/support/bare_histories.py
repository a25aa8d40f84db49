"""Histories as older clients leave them: the conversation, without system and tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxlab.traces import Exchange, Trace
from mlxlab.traces.importers.claude_code.importer import ClaudeCode
from tests.support.histories import SessionLog

__all__ = ["bare_history", "import_bare"]


def bare_history(trace: Trace, folder: Path, **origin: str) -> Path:
    """Write what an older client would have kept of the requests of a trace.

    Args:
        trace: recorded requests, whose answers have a usage.
        folder: of the project.
        origin: further fields of each record, such as ``version`` and ``cwd``.
    """
    logs: dict[tuple[str, str], SessionLog] = {}
    for exchange in trace.inference:
        named = exchange.session, exchange.agent
        if named not in logs:
            agent = exchange.agent
            inside = f"{exchange.session}/subagents/agent-{agent}.jsonl"
            path = folder / (inside if agent else f"{exchange.session}.jsonl")
            logs[named] = SessionLog(path, exchange.session)
            logs[named].more = origin | ({"agentId": agent} if agent else {})
        _write(logs[named], exchange)
    return folder


def import_bare(trace: Trace, folder: Path, **origin: str) -> Trace:
    """Import :func:`bare_history`."""
    return ClaudeCode().read(bare_history(trace, folder, **origin), progress=False)


def _write(log: SessionLog, exchange: Exchange) -> None:
    assert exchange.body is not None
    assert exchange.response is not None
    messages: list[dict[str, Any]] = exchange.body["messages"]
    log.t = exchange.t - 1
    if not any(message["role"] == "assistant" for message in messages):
        log.last = None  # a new beginning
    asked = [m for m in _behind_answer(messages) if m["role"] == "user"]
    for message in asked:
        log.say("user", message["content"])
        log.t = exchange.t - 1
    answer = dict(exchange.response.message or {})
    log.t = exchange.response.t - 1
    log.say("assistant", answer.pop("content"), message=answer)


def _behind_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    roles = [message["role"] for message in messages]
    last = max((i for i, role in enumerate(roles) if role == "assistant"), default=-1)
    return messages[last + 1 :]
