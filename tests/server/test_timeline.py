"""A timeline shows each request as spans that follow each other."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlxlab.server.event_log import Asker, EventLog, Stage
from mlxlab.server.timeline import make_timeline
from tests.support.endpoint import Client, ask, served, words


def spans(timeline: dict[str, Any], request: int) -> list[dict[str, Any]]:
    rows = timeline["traceEvents"]
    return [row for row in rows if row["ph"] == "X" and row["tid"] == request]


def test_a_served_request_has_four_spans_without_gaps(tmp_path: Path) -> None:
    with served(chunk=64) as server, Client(server.url) as client:
        client.ask(ask(words(100, 7000)), max_tokens=3)
        client.ask(ask(words(100, 7000)), max_tokens=3)
        server.timeline(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text()
    timeline = json.loads(text)
    for request in (1, 2):
        own = spans(timeline, request)
        assert [row["name"] for row in own] == ["render", "queue", "prefill", "decode"]
        assert all(a["ts"] + a["dur"] == b["ts"] for a, b in pairwise(own))
        assert all(row["dur"] >= 0 for row in own)
    progress = [r for r in timeline["traceEvents"] if r["name"] == "progress"]
    assert len([r for r in progress if r["tid"] == 1]) > 3
    assert "w7001" not in text  # no text of the prompt


def test_sessions_are_processes_and_agents_are_named() -> None:
    log = EventLog()
    for asker in (Asker("one"), Asker("two", "explore"), Asker("one", "explore")):
        log.add(log.arrive(asker, "m"), Stage.ENDED, outcome="refused")
    rows = make_timeline(log.since())["traceEvents"]
    named = [
        (row["pid"], row["args"]["name"])
        for row in rows
        if row["name"] == "thread_name"
    ]
    assert named == [(1, "#1 main"), (2, "#2 explore"), (1, "#3 explore")]


def test_a_request_whose_beginning_was_dropped_is_left_out() -> None:
    log = EventLog(kept=3)
    for _ in range(2):
        log.add(log.arrive(Asker(), "m"), Stage.ENDED, outcome="refused")
    assert {row["tid"] for row in make_timeline(log.since())["traceEvents"]} == {2}
