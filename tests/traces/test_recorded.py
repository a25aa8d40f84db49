"""Each recorded trace has the property that it is there for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mlxlab.traces import Exchange, Trace, read_trace

DATA = Path(__file__).parents[2] / "data"
NAMES = sorted(path.parent.name for path in DATA.glob("scenarios/*/steps.json"))
MAX_BYTES = 500_000
MAX_TOTAL_BYTES = 5_000_000


def trace_file(name: str) -> Path:
    return DATA / "traces" / f"{name}.jsonl"


@cache
def load(name: str) -> Trace:
    return read_trace(trace_file(name))


def blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    whole = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{k: v for k, v in b.items() if k != "cache_control"} for b in whole]


def history(exchange: Exchange) -> list[tuple[str, str]]:
    """Return messages as role and content, without cache markers."""
    assert exchange.body is not None
    messages = exchange.body["messages"]
    return [(m["role"], json.dumps(blocks(m), sort_keys=True)) for m in messages]


def extends(later: Exchange, earlier: Exchange) -> bool:
    before = history(earlier)
    return history(later)[: len(before)] == before


def blocks_of(exchange: Exchange, role: str, kind: str) -> list[dict[str, Any]]:
    assert exchange.body is not None
    messages = [m for m in exchange.body["messages"] if m["role"] == role]
    return [b for m in messages for b in blocks(m) if b["type"] == kind]


def answer(exchange: Exchange) -> list[dict[str, Any]]:
    assert exchange.response is not None
    assert exchange.response.message is not None
    content: list[dict[str, Any]] = exchange.response.message["content"]
    return content


def strings(value: Any, key: str = "") -> Iterator[str]:
    """What can be read in a body, but for the API's own words."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, key)
    elif isinstance(value, str) and key not in ("type", "model", "role"):
        yield value.removeprefix("x-anthropic-billing-header")


def test_every_scenario_is_recorded_and_nothing_else() -> None:
    files = sorted(path.stem for path in (DATA / "traces").glob("*.jsonl"))
    assert files == sorted([*NAMES, "tasks"])  # which is written, not recorded
    total = sum(trace_file(name).stat().st_size for name in NAMES)
    assert total < MAX_TOTAL_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_is_whole_answered_and_tells_its_origin(name: str) -> None:
    trace = load(name)
    assert trace_file(name).stat().st_size < MAX_BYTES
    assert trace.skipped == {}
    assert trace.inference == trace.exchanges
    assert all(e.response is not None and e.response.status == 200 for e in trace)
    assert trace.header.notes["anonymized"] is True
    assert trace.header.notes["scenario"] == name
    assert re.match(r"\d+\.\d+", trace.header.notes["client"])


@pytest.mark.parametrize("name", NAMES)
def test_no_word_of_client_or_project_is_left(name: str) -> None:
    sources = (DATA / "scenarios" / name / "project").rglob("*.py")
    code = "\n".join(path.read_text() for path in sources)
    names = re.findall(r"(?:def|class) (\w{10,})", code)
    words = re.compile(
        "|".join(["anthropic", "claude", "robin@", *names]), re.IGNORECASE
    )
    for exchange in load(name):
        for text in strings([exchange.body, answer(exchange)]):
            assert not words.search(text)


def test_loop_is_one_long_tool_loop() -> None:
    requests = load("loop").inference
    assert len(blocks_of(requests[-1], "assistant", "tool_use")) >= 15
    assert all(extends(later, earlier) for earlier, later in pairwise(requests))


def test_sessions_are_three_of_one_project_on_one_day() -> None:
    trace = load("sessions")
    assert len(trace.sessions) == 3
    assert len(trace) == 11
    starts = [next(e for e in trace if e.session == s) for s in trace.sessions]
    bodies = [e.body for e in starts if e.body is not None]
    assert bodies[0]["tools"] == bodies[1]["tools"] == bodies[2]["tools"]
    assert bodies[0]["system"][1:] == bodies[1]["system"][1:] == bodies[2]["system"][1:]
    # What breaks their common prefix: the attribution in front.
    assert len({b["system"][0]["text"] for b in bodies}) == 3


def test_subagents_overlap_in_time_with_each_other_and_the_main_loop() -> None:
    trace = load("subagents")
    agents = {e.agent for e in trace if e.agent}
    assert len(agents) == 2
    spans = []
    for agent in agents:
        own = [e for e in trace if e.agent == agent]
        assert len(blocks_of(own[-1], "assistant", "tool_use")) >= 4
        spans.append((own[0].t, own[-1].t))
    begin, end = max(s for s, _ in spans), min(e for _, e in spans)
    assert begin < end
    main = [e.t for e in trace if not e.agent]
    assert any(min(spans)[0] < t < max(e for _, e in spans) for t in main)


def test_resume_continues_one_history_twice() -> None:
    trace = load("resume")
    assert len(trace.sessions) == 1
    assert all(extends(later, earlier) for earlier, later in pairwise(trace.inference))
    prompts = [e for e in trace if answer(e)[-1]["type"] == "text"]
    assert len(prompts) == 3


def test_compact_cuts_the_history_twice() -> None:
    trace = load("compact")
    cuts = [
        (earlier, later)
        for earlier, later in pairwise(trace.inference)
        if len(history(later)) < len(history(earlier))
    ]
    (before, after), (last, cleared) = cuts
    # A compaction keeps the session and asks for a summary on top of all of it.
    assert before.session == after.session
    assert history(after)[0] != history(before)[0]
    asked = [e for e in trace if e.t < before.t][-1]
    assert history(before)[:-1] == history(asked)[:-1]
    # A clear begins another session.
    assert last.session != cleared.session
    assert not blocks_of(cleared, "assistant", "text")


def test_thinking_comes_back_verbatim_with_its_signature() -> None:
    requests = load("thinking").inference
    thought: list[dict[str, Any]] = []
    for exchange in requests:
        assert blocks_of(exchange, "assistant", "thinking") == thought
        thought += [b for b in answer(exchange) if b["type"] == "thinking"]
    assert len(thought) >= 5
    assert all(b["signature"] and b["thinking"] for b in thought)


def test_deferred_tools_appear_inside_the_list_once_referenced() -> None:
    requests = load("deferred").inference
    before, after = next(
        (e, f)
        for e, f in pairwise(requests)
        if e.body and f.body and len(e.body["tools"]) < len(f.body["tools"])
    )
    assert before.body is not None
    assert after.body is not None
    names = [t["name"] for t in before.body["tools"]]
    new = [t for t in after.body["tools"] if t["name"] not in names]
    assert [t["defer_loading"] for t in new] == [True]
    assert after.body["tools"][-1]["name"] == names[-1]
    (result,) = [
        b["content"]
        for b in blocks_of(after, "user", "tool_result")
        if isinstance(b["content"], list)
        and b["content"][0]["type"] == "tool_reference"
    ]
    assert result[0]["tool_name"] == new[0]["name"]
