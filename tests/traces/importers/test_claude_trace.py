"""Logs of claude-trace become the requests that were sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlxlab.traces.importers.claude_trace import ClaudeTrace
from mlxlab.traces.trace import Trace
from mlxlab.web.sse import frames
from tests.support.trace_samples import HEADERS, SESSION, request

MESSAGE = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "text", "text": "Grüße ☃"},
        {"type": "tool_use", "id": "t", "name": "N", "input": {"a": [1]}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 2},
}


def pair(t: float, response: Any, **fields: Any) -> str:
    asked = {
        "timestamp": t,
        "method": "post",
        "url": "https://api.example.com/v1/messages?beta=true&api_key=x",
        "headers": HEADERS,
        "body": request(),
    }
    if response is not None:
        response = {"timestamp": t + 1, "status_code": 200, "headers": {}} | response
    return json.dumps({"request": asked | fields, "response": response}) + "\n"


def imported(path: Path, *lines: str) -> Trace:
    path.write_text("".join(lines))
    return ClaudeTrace().read(path, progress=False)


def test_whole_and_streamed_answers_are_read(tmp_path: Path) -> None:
    events = b"".join(frames(MESSAGE)).decode()
    lines = [pair(5.0, {"body_raw": events}), pair(1.0, {"body": MESSAGE})]
    trace = imported(tmp_path / "log.jsonl", *lines)
    assert [e.t for e in trace] == [1.0, 5.0]
    assert [e.id for e in trace] == [0, 1]
    for exchange in trace:
        assert exchange.body == request()
        assert exchange.path == "/v1/messages?beta=true"
        assert exchange.method == "POST"
        assert exchange.session == SESSION[:8]
        assert "x-api-key" not in exchange.headers
        assert exchange.response is not None
        assert exchange.response.message == MESSAGE
        assert exchange.response.t == exchange.t + 1


def test_equal_messages_are_one_object(tmp_path: Path) -> None:
    first, second = imported(tmp_path / "l.jsonl", pair(1, None), pair(2, None))
    assert first.body is not None
    assert second.body is not None
    assert first.body["messages"][0] is second.body["messages"][0]


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    lines = [
        pair(1.0, None),
        pair(2.0, {"body_raw": "<html>"}),
        pair(3.0, {"status_code": 529, "body": {"type": "error"}}),
        pair(4.0, None, timestamp="yesterday"),
        pair(5.0, None, url="http://[bad"),
        pair(6.0, None, body='{"model": "m", "messages": []}'),
        "{}\n",
    ]
    trace = imported(tmp_path / "log.jsonl", *lines)
    statuses = [e.response.status if e.response else None for e in trace]
    assert statuses == [None, 200, 529, None]
    assert trace.exchanges[-1].body == {"model": "m", "messages": []}
    assert trace.skipped == {
        "answer without a message": 1,
        "line without a recorded request skipped": 3,
    }
