"""A history without system text and tools is filled from a recording."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mlxlab as ml
from mlxlab.errors import TraceError
from mlxlab.rendering.messages import parse_request
from mlxlab.traces import Exchange, Trace, load_trace, read_trace, write_trace
from mlxlab.traces.anonymize.anonymizer import anonymize
from mlxlab.traces.completeness import FILLED
from mlxlab.traces.filling.fill import fill_history
from mlxlab.traces.prompt_size import find_scale, measure_prompts
from mlxlab.traces.schema import HeaderLine
from tests.support.bare_histories import import_bare
from tests.support.exchanges import small_trace

VERSION = "2.1.330"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The history of three sessions, by a client that keeps the conversation only."""
    folder = tmp_path_factory.mktemp("bare")
    return import_bare(load_trace("sessions"), folder / "p", version=VERSION)


@pytest.fixture(scope="module")
def filled(bare: Trace) -> Trace:
    return fill_history(bare, [load_trace("subagents")])


def body(exchange: Exchange) -> dict[str, Any]:
    assert exchange.body is not None
    return exchange.body


def front(exchange: Exchange) -> str:
    return str(body(exchange)["system"][0]["text"])


def behind(exchange: Exchange) -> str:
    """All that precedes the conversation, but for the attribution block."""
    own = body(exchange)
    return json.dumps([own["system"][1:], own["tools"]])


def by_session(trace: Trace) -> list[list[Exchange]]:
    return [[e for e in trace if e.session == session] for session in trace.sessions]


def avoidable(trace: str | Trace, strategy: str) -> float:
    rows = ml.misses(trace, strategy, progress=False).requests
    return float(rows.lost_tokens.sum() / rows.missed_tokens.sum())


@pytest.mark.parametrize(
    ("name", "strategies"),
    [
        ("sessions", ["prefix@none", "paged"]),
        pytest.param("resume", ["prefix@none", "paged"], marks=pytest.mark.slow),
        pytest.param("thinking", ["prefix@none", "paged"], marks=pytest.mark.slow),
        # The test's history has no attachments, so inline reminders are missing.
        pytest.param("loop", ["paged"], marks=pytest.mark.slow),
    ],
)
def test_a_filled_history_misses_for_the_same_reasons_as_the_wire(
    name: str, strategies: list[str], tmp_path: Path
) -> None:
    history = import_bare(load_trace(name), tmp_path / "p", version=VERSION)
    filled = fill_history(history, [load_trace("subagents")])
    for strategy in strategies:
        assert avoidable(filled, strategy) == pytest.approx(
            avoidable(name, strategy), abs=0.05
        )


def test_sizes_are_those_that_usage_states(bare: Trace, filled: Trace) -> None:
    scale = find_scale(measure_prompts(bare.inference))
    for prompt in measure_prompts(filled.inference):
        assert scale.tokens(prompt.size) == pytest.approx(prompt.stated, rel=0.03)
    assert filled.completeness is not None
    found = filled.completeness
    assert found.assumed + found.here == pytest.approx(found.stated, rel=0.03)


def test_what_was_assumed_is_said_first(bare: Trace, filled: Trace) -> None:
    assert filled.skipped == {FILLED: 11}
    assert filled.completeness is not None
    line = filled.completeness.line
    assert "filled from trace subagents (client 2.1.330): about " in line
    assert "are assumed, and how header and git status change; exact: record" in line
    assert repr(filled).startswith(line)
    assert not filled.completeness.is_mostly_absent
    assert fill_history(filled) is filled


def test_what_was_assumed_survives_writing_and_sharing(
    filled: Trace, tmp_path: Path
) -> None:
    write_trace(filled, tmp_path / "t.jsonl", progress=False)
    again = read_trace(tmp_path / "t.jsonl")
    assert again.completeness == filled.completeness
    assert [e.body for e in again] == [e.body for e in filled]
    assert anonymize(again, progress=False).completeness == filled.completeness


def test_only_what_clients_change_differs(bare: Trace, filled: Trace) -> None:
    sessions = by_session(filled)
    assert [len({front(e) for e in own}) for own in sessions] == [1, 1, 1]
    assert len({front(e) for e in filled}) == 3
    assert len({behind(e) for e in filled}) == 1
    assert fill_history(bare, [load_trace("subagents")]).digest == filled.digest
    for before, after in zip(bare, filled, strict=True):
        kept = [m for m in body(after)["messages"] if m["role"] != "system"]
        assert kept == body(before)["messages"]


def test_a_header_that_changed_with_each_request_does_so(bare: Trace) -> None:
    donor = load_trace("subagents")
    restless = [
        replace(e, body={**body(e), "system": [_numbered(e), *body(e)["system"][1:]]})
        for e in donor
    ]
    filled = fill_history(bare, [replace(donor, exchanges=tuple(restless))])
    assert len({front(e) for e in filled}) == len(filled)


def _numbered(exchange: Exchange) -> dict[str, str]:
    version = f"2.1.300.{exchange.id:03}"
    text = f"x-anthropic-billing-header: cc_version={version}; cc_entrypoint=cli;"
    return {"type": "text", "text": text}


def _call(name: str, **given: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": "t", "name": name, "input": given}


@pytest.mark.parametrize(
    "later",
    [
        _call("Edit", file_path="/work/app/queue.py"),
        _call("Bash", command="git commit -am Done"),
    ],
)
def test_git_status_changes_with_what_sessions_did(
    later: dict[str, Any], tmp_path: Path
) -> None:
    # A session edits a file, the next one edits it again, or commits.
    trace = load_trace("sessions")
    edit = _call("Edit", file_path="/work/app/queue.py")
    ends = [edit, later, edit]
    edited = [
        _ending(own, end) for own, end in zip(by_session(trace), ends, strict=True)
    ]
    trace = replace(trace, exchanges=tuple(e for own in edited for e in own))
    origin = {"version": VERSION, "cwd": "/work/app", "gitBranch": "main"}
    history = import_bare(trace, tmp_path / "p", **origin)
    filled = fill_history(history, [load_trace("subagents")])
    texts = [{body(e)["system"][-1]["text"] for e in own} for own in by_session(filled)]
    (first,), (second,), (third,) = texts
    assert "Working directory: /work/app" in first
    assert "Current branch: main\n\nStatus:\n(clean)" in first
    assert "Status:\n M queue.py" in second
    assert (second == third) == (later == edit)
    assert ("(clean)" in third) == (later != edit)
    assert first != third
    assert len({json.dumps(body(e)["tools"]) for e in filled}) == 1


def _ending(exchanges: list[Exchange], call: dict[str, Any]) -> list[Exchange]:
    """Let the last answer call a tool."""
    *others, last = exchanges
    assert last.response is not None
    assert last.response.message is not None
    message = {**last.response.message, "content": [call]}
    return [*others, replace(last, response=replace(last.response, message=message))]


def test_sub_agents_get_the_text_of_sub_agents(tmp_path: Path) -> None:
    trace = load_trace("subagents")
    history = import_bare(trace, tmp_path / "p", version=VERSION)
    filled = fill_history(history, [trace])
    for exchange in filled:
        assert ("cc_is_subagent" in front(exchange)) == any(
            "cc_is_subagent" in front(e) for e in trace if e.agent == exchange.agent
        )
    main = {body(e)["system"][2]["text"] for e in filled if not e.agent}
    agents = {body(e)["system"][2]["text"] for e in filled if e.agent}
    assert len(main) == len(agents) == 1
    assert main != agents


def test_the_nearest_version_is_taken(bare: Trace) -> None:
    def of(version: str, name: str) -> Trace:
        agent = {"user-agent": f"claude-cli/{version}"}
        trace = load_trace("thinking")
        own = [replace(e, headers={**e.headers, **agent}) for e in trace]
        return replace(trace, name=name, exchanges=tuple(own))

    others = [of("2.1.400", "far"), of("2.1.320", "near"), of("3.0.330", "next")]
    filled = fill_history(bare, others)
    assert filled.completeness is not None
    assert filled.completeness.source == "trace near (client 2.1.320)"


def test_its_own_complete_requests_come_first(tmp_path: Path) -> None:
    trace = load_trace("sessions")
    history = import_bare(trace, tmp_path / "p", version="2.1.300")
    later = [replace(e, id=100 + e.id, t=e.t + 1000) for e in trace]
    mixed = replace(history, exchanges=(*history.exchanges, *later))
    filled = fill_history(mixed, [load_trace("subagents")])
    assert filled.completeness is not None
    assert filled.completeness.source == "its own complete requests (client 2.1.330)"
    assert [e.body for e in filled][11:] == [e.body for e in later]
    assert body(filled.exchanges[0])["tools"][0] == body(later[0])["tools"][0]


@pytest.mark.parametrize("tokens", [40, 700, 4000, 900_000])
def test_any_stated_size_is_met(tokens: int) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi."}]}
    first = load_trace("thinking").exchanges[0]
    assert first.response is not None
    message = {"content": [], "usage": {"input_tokens": tokens}}
    one = replace(first, body=asked, response=replace(first.response, message=message))
    header = HeaderLine(
        skipped={"request rebuilt from the conversation, without system and tools": 1}
    )
    [filled] = fill_history(Trace("h", (one,), header), [load_trace("thinking")])
    [prompt] = measure_prompts([filled])
    assert prompt.size / 4 == pytest.approx(tokens, rel=0.03, abs=10)
    assert len(body(filled).get("tools", [])) < 200
    parse_request(filled.body)


def test_without_usage_the_recorded_size_is_taken(bare: Trace) -> None:
    silent = [
        replace(e, response=replace(e.response, message={"content": []}))
        for e in bare
        if e.response
    ]
    donor = load_trace("subagents")
    filled = fill_history(replace(bare, exchanges=tuple(silent)), [donor])
    assert body(filled.exchanges[0])["tools"] == body(donor.exchanges[0])["tools"]
    assert filled.completeness is not None
    assert "all sizes are assumed" in filled.completeness.line


def test_recordings_are_left_as_they_are() -> None:
    trace = load_trace("sessions")
    assert fill_history(trace) is trace


def test_without_a_recording_it_says_what_to_do(bare: Trace) -> None:
    with pytest.raises(TraceError, match=r"trace p: no recording .*mlxlab record"):
        fill_history(bare, [])


def test_other_clients_are_no_recordings(bare: Trace) -> None:
    filled = fill_history(bare, [small_trace("other"), load_trace("subagents")])
    assert filled.completeness is not None
    assert "subagents" in filled.completeness.source
