"""Claude Code's history becomes the requests that were sent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxlab.errors import TraceError
from mlxlab.rendering.messages import parse_answer, parse_request
from mlxlab.traces import read_trace, write_trace
from mlxlab.traces.completeness import REBUILT
from mlxlab.traces.importers import Selection, files, import_trace
from mlxlab.traces.importers.claude_code.importer import ClaudeCode
from mlxlab.traces.trace import PARTIAL_LINE, Trace
from tests.support.histories import MARK, SHAPE, SessionLog, T, name_of

FIRST = {"role": "user", "content": [{"type": "text", "text": "Fix it."}]}
ENVIRONMENT: dict[str, Any] = {
    "role": "system",
    "content": [{"type": "text", "text": "Linux."}],
}
READS = [
    {"type": "tool_use", "id": f"t{i}", "name": "Read", "input": {"file": f"{i}.py"}}
    for i in range(2)
]
RESULTS = [
    {"type": "tool_result", "tool_use_id": f"t{i}", "content": f"text {i}"}
    for i in range(2)
]
DONE = {"type": "text", "text": "Done."}


def imported(path: Path, **selection: Any) -> Trace:
    return ClaudeCode().read(path, Selection(**selection), progress=False)


def bodies(trace: Trace) -> list[dict[str, Any]]:
    return [exchange.body or {} for exchange in trace]


def messages(trace: Trace) -> list[list[Any]]:
    return [body["messages"] for body in bodies(trace)]


@pytest.fixture
def log(tmp_path: Path) -> SessionLog:
    return SessionLog(tmp_path / "-home-me-app" / "s1.jsonl")


def two_requests(log: SessionLog, prefix: str = "") -> None:
    """A request with blobs; one whose messages only the conversation holds."""
    log.shape()
    log.say("user", "Fix it.")
    tail = [log.blob(FIRST), log.blob(ENVIRONMENT)]
    marks = [
        {"path": ["system", 0], "value": MARK},
        {"path": ["messages", 1, "content", 0], "value": MARK},
    ]
    first, second = f"{prefix}r1", f"{prefix}r2"
    log.request(first, *tail, cacheControl=marks)
    log.answer(f"{prefix}a1", *READS, request=first)
    parents = [log.last, log.last]
    for parent, result in zip(parents, RESULTS, strict=True):
        log.say("user", [result], parentUuid=parent)
    asked = {"role": "assistant", "content": READS}
    told = {"role": "user", "content": RESULTS}
    mark = {"path": ["messages", 3, "content", 1], "value": MARK}
    tail = [name_of(asked), name_of(told)]
    log.request(second, *tail, base=first, keep=2, cacheControl=[mark])
    log.answer(f"{prefix}a2", DONE, request=second)


def test_requests_are_rebuilt_as_they_were_sent(log: SessionLog) -> None:
    two_requests(log)
    trace = imported(log.path.parents[1])
    marked = {**ENVIRONMENT["content"][0], "cache_control": MARK}
    first, second = bodies(trace)
    assert first == {
        "model": "m",
        "max_tokens": 9,
        "system": [{**SHAPE["system"][0], "cache_control": MARK}],
        "tools": SHAPE["tools"],
        # A lone text without a marker goes as a string, whatever the blob's form.
        "messages": [
            {"role": "user", "content": "Fix it."},
            {"role": "system", "content": [marked]},
        ],
    }
    assert second["system"] == SHAPE["system"]
    assert second["messages"] == [
        {"role": "user", "content": "Fix it."},
        {"role": "system", "content": "Linux."},
        {"role": "assistant", "content": READS},
        {
            "role": "user",
            "content": [RESULTS[0], {**RESULTS[1], "cache_control": MARK}],
        },
    ]
    assert trace.skipped == {}


def test_a_marker_in_a_tool_marks_no_message(log: SessionLog) -> None:
    log.shape()
    mark = {"path": ["tools", 0, "input_schema"], "value": MARK}
    log.request("r1", log.blob(FIRST), cacheControl=[mark])
    [body] = bodies(imported(log.path))
    assert body["messages"] == [{"role": "user", "content": "Fix it."}]
    assert body["tools"][0]["input_schema"]["cache_control"] == MARK


def test_where_and_when_it_was_sent_is_kept(log: SessionLog) -> None:
    log.more = {"agentId": "a123"}
    two_requests(log)
    trace = imported(log.path)
    assert [e.id for e in trace] == [0, 1]
    assert [e.t - T for e in trace] == [5, 10]
    for exchange in trace:
        assert exchange.is_inference
        assert (exchange.session, exchange.agent) == ("s1-of-th", "a123")
        assert exchange.headers["anthropic-beta"] == "b1,b2"
        assert exchange.headers["x-claude-code-query-source"] == "sdk"


def test_answers_are_put_together_of_their_records(log: SessionLog) -> None:
    two_requests(log)
    first, second = (e.response for e in imported(log.path))
    assert first is not None
    assert first.message == {
        "role": "assistant",
        "id": "a1",
        "model": "m",
        "stop_reason": "end_turn",
        "usage": {"n": 1},
        "content": READS,
    }
    assert first.t == T + 7
    assert second is not None
    assert second.message is not None
    assert second.message["content"] == [DONE]


def test_an_answer_that_names_no_request_is_to_the_last_one(log: SessionLog) -> None:
    log.shape()
    log.request("r1", log.blob(FIRST))
    log.answer("a1", DONE)
    trace = imported(log.path)
    assert len(trace) == 1
    assert trace.exchanges[0].response is not None
    assert trace.skipped == {}


def test_equal_messages_are_one_object(log: SessionLog) -> None:
    two_requests(log)
    first, second = messages(imported(log.path))
    assert first[0] is second[0]


def test_the_trace_survives_writing(log: SessionLog, tmp_path: Path) -> None:
    two_requests(log)
    log.record("a-kind-from-the-future")
    trace = imported(log.path)
    write_trace(trace, tmp_path / "trace.jsonl")
    again = read_trace(tmp_path / "trace.jsonl")
    assert again.digest == trace.digest
    assert again.skipped == {"record of an unknown kind skipped": 1}
    assert again.header.notes["imported"] == "claude-code"


def test_secrets_are_replaced_in_messages_and_answers(log: SessionLog) -> None:
    secret = "ghp" + "_0123456789abcdefghijABCDEFGHIJ"
    message = {"role": "user", "content": f"Use {secret}"}
    log.shape()
    log.request("r1", log.blob(message))
    log.answer("a1", {"type": "text", "text": f"I use {secret}"}, request="r1")
    trace = imported(log.path)
    assert secret not in str(trace.exchanges)
    assert trace.skipped == {"secret replaced": 2}


@pytest.mark.parametrize(
    ("value", "written"),
    [(1e-7, "1e-7"), (2.5e-5, "0.000025"), (1e21, "1e+21"), (1e20, f"{10**20}")],
)
def test_numbers_are_hashed_as_javascript_writes_them(
    log: SessionLog, value: float, written: str
) -> None:
    call = {"type": "tool_use", "id": "t", "name": "N", "input": {"x": value}}
    block = f'{{"id":"t","input":{{"x":{written}}},"name":"N","type":"tool_use"}}'
    text = f'{{"content":[{block}],"role":"assistant"}}'
    log.shape()
    log.answer("a0", call)
    log.request("r1", hashlib.sha256(text.encode()).hexdigest())
    [[message]] = messages(imported(log.path))
    assert message == {"role": "assistant", "content": [call]}


def test_damage_is_counted_and_the_rest_read(
    log: SessionLog, caplog: pytest.LogCaptureFixture
) -> None:
    two_requests(log)
    log.raw(b"\x00\x01binary\n{broken\n[1]\n\n")
    log.record("api-request-blob", hash=7)
    log.record("api-request-blob", hash="0" * 64, message=FIRST)
    log.record("api-request-shape", shapeHash="1" * 64, shape={"system": []})
    log.request("r3", "f" * 64)
    log.request("r4", shapeHash="e" * 64)
    log.request("r5", base="nobody", keep=1)
    bad = {"path": ["messages", 9], "value": MARK}
    log.request("r6", name_of(FIRST), cacheControl=[bad])
    log.raw(b'{"type":"user","mess')
    trace = imported(log.path)
    assert len(trace) == 3
    assert trace.skipped == {
        "cache marker without a block left out": 1,
        "line that is not a JSON object skipped": 3,
        "message unlike its hash": 1,
        PARTIAL_LINE: 1,
        "record that lacks something skipped": 1,
        "request without all its messages skipped": 1,
        "request without its system and tools skipped": 1,
        "request without the one it goes on from skipped": 1,
        "system and tools unlike their hash": 1,
    }
    assert f"{log.path}:14: line that is not a JSON object skipped" in caplog.text


def test_a_huge_line_is_left_out_and_named(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "LINE_BYTES", 2000)
    monkeypatch.setattr(files, "_CHUNK", 10)
    two_requests(log)
    log.raw(b'{"type": "' + b"x" * 5000 + b'"}\n')
    log.record("a-kind-from-the-future")
    trace = imported(log.path)
    assert len(trace) == 2
    assert trace.skipped["line over 2,000 bytes skipped"] == 1
    assert trace.skipped["record of an unknown kind skipped"] == 1
    assert f"{log.path}:12: line over" in caplog.text


def test_an_older_history_is_rebuilt_from_the_conversation(log: SessionLog) -> None:
    log.say("user", "Fix it.")
    log.record("attachment", uuid="x", parentUuid=log.last)
    log.last = "x"
    log.answer("a1", *READS)
    second = log.last
    # Both results hang on the tree, but the chain passes by the first.
    log.say("user", [RESULTS[0]], parentUuid="s1-u1")
    log.say("user", [RESULTS[1]], parentUuid=second)
    log.answer("a2", DONE)
    trace = imported(log.path)
    assert bodies(trace)[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "Fix it."}],
    }
    assert messages(trace)[1] == [
        {"role": "user", "content": "Fix it."},
        {"role": "assistant", "content": READS},
        {"role": "user", "content": RESULTS},
    ]
    assert [e.t - T for e in trace] == [1, 6]
    answers = [
        e.response.message["content"]
        for e in trace
        if e.response and e.response.message
    ]
    assert answers == [READS, [DONE]]
    assert trace.skipped == {REBUILT: 2}


def test_a_circle_of_parents_ends(log: SessionLog) -> None:
    log.say("user", "One.", parentUuid="s1-u1")
    log.say("user", "Two.")
    log.answer("a1", DONE)
    [[message]] = messages(imported(log.path))
    texts = [block["text"] for block in message["content"]]
    assert texts == ["One.", "Two."]


def test_messages_of_the_clients_own_are_no_answers(log: SessionLog) -> None:
    log.say("user", "Fix it.")
    log.say("assistant", [DONE], message={"id": "e", "model": "<synthetic>"})
    log.say("user", "Again.")
    log.answer("a1", DONE)
    [[message]] = messages(imported(log.path))
    assert [block["text"] for block in message["content"]] == ["Fix it.", "Again."]


def test_sidechains_without_an_id_are_agents(log: SessionLog) -> None:
    log.say("user", "Look.", isSidechain=True)
    log.say("assistant", [DONE], isSidechain=True, message={"id": "a1"})
    [exchange] = imported(log.path).exchanges
    assert exchange.agent == "s1-u0"


def test_a_copy_of_a_session_is_taken_once(log: SessionLog) -> None:
    two_requests(log)
    copy = SessionLog(log.path.with_name("s2.jsonl"), "s2", T + 100)
    copy.say("user", "Fix it.")
    copy.answer("a1", *READS, request="r1")
    copy.say("user", RESULTS)
    copy.answer("a9", DONE)
    trace = imported(log.path.parent)
    assert [e.session for e in trace] == ["s1-of-th", "s1-of-th", "s2"]
    assert trace.skipped == {REBUILT: 1}


def test_projects_sub_agents_and_dates_are_chosen_among(tmp_path: Path) -> None:
    old = SessionLog(tmp_path / "-me-old" / "s0.jsonl", "s0", T - 1000)
    app = SessionLog(tmp_path / "-me-app" / "s1.jsonl", "s1", T)
    agent = SessionLog(tmp_path / "-me-app/s1/subagents/agent-a.jsonl", "s1", T + 50)
    agent.more = {"agentId": "a"}
    for log in (old, app, agent):
        two_requests(log, log.path.stem)

    def sessions(**selection: Any) -> list[str]:
        return [e.session + e.agent for e in imported(tmp_path, **selection)]

    assert sessions() == ["s0", "s0", "s1", "s1", "s1a", "s1a"]
    assert sessions(project="app") == ["s1", "s1", "s1a", "s1a"]
    assert sessions(since=T) == ["s1", "s1", "s1a", "s1a"]
    assert sessions(limit=3) == ["s1", "s1a", "s1a"]
    assert sessions(limit=2, project="old") == ["s0", "s0"]


def test_what_is_too_old_is_not_even_read(tmp_path: Path) -> None:
    old = SessionLog(tmp_path / "p" / "s0.jsonl", "s0", T - 1000)
    old.raw(b"damaged\n")
    two_requests(SessionLog(tmp_path / "p" / "s1.jsonl", "s1", T))
    assert imported(tmp_path, limit=2).skipped == {}
    assert imported(tmp_path, since=T).skipped == {}
    assert imported(tmp_path, limit=3).skipped != {}


def test_links_in_circles_and_odd_files_do_no_harm(
    log: SessionLog, caplog: pytest.LogCaptureFixture
) -> None:
    two_requests(log)
    folder = log.path.parent
    (folder / "loop").symlink_to(folder)
    (folder / "again.jsonl").symlink_to(log.path)
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    (folder / "empty.jsonl").touch()
    (folder / "notes.txt").write_text("no transcript")
    os.mkfifo(folder / "pipe.jsonl")
    trace = imported(folder.parent)
    assert len(trace) == 2
    assert trace.skipped == {
        "file that cannot be read skipped": 1,
        "file that is not a regular file skipped": 1,
    }
    assert f"{folder / 'gone.jsonl'} (No such file or directory)" in caplog.text


def test_a_folder_that_cannot_be_read_is_named(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two_requests(log)
    closed = log.path.parent / "closed"
    closed.mkdir()
    listed = Path.iterdir

    def refusing(path: Path) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    trace = imported(log.path.parents[1])
    assert trace.skipped == {"folder that cannot be read skipped": 1}
    assert f"{closed} (Permission denied)" in caplog.text


def test_nothing_at_all_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"type":"mode","sessionId":"s"}\nbroken\n')
    for path in (tmp_path, tmp_path / "a.jsonl"):
        with pytest.raises(TraceError, match="no request of format claude-code") as bad:
            import_trace(path, progress=False)
        assert "line that is not a JSON object skipped (1 times)" in str(bad.value)
        assert "\n" not in str(bad.value)
    with pytest.raises(TraceError, match=r"none: No such file.*; give a file or"):
        import_trace(tmp_path / "none")


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else []
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield from paths(item, (*at, key))


def changed(value: Any, at: tuple[Any, ...], item: Any) -> Any:
    if not at:
        return item
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(value[at[0]], at[1:], item)
    return copy


ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 1e300, "", "r1", "\ud800", [], {}, [[]], [None]]
)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_in_a_record_stops_the_import(data: Any, tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "p" / "s.jsonl")
    log.path.write_bytes(b"")
    two_requests(log)
    log.say("user", "And now?")
    log.answer("a3", DONE)
    lines = list(map(json.loads, log.path.read_bytes().splitlines()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from([at for at in paths(lines) if at]))
        lines = changed(lines, at, data.draw(ODD))
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        trace = imported(tmp_path)
    except TraceError:
        return
    for exchange in trace:
        parse_request(exchange.body)
        if exchange.response:
            parse_answer(exchange.response.message)
    write_trace(trace, tmp_path / "trace.out")
    assert read_trace(tmp_path / "trace.out").digest == trace.digest


def test_requests_of_older_clients_name_version_folder_branch_and_start(
    log: SessionLog,
) -> None:
    log.more = {"version": "2.1.197", "cwd": "/me/app", "gitBranch": "main"}
    log.say("user", "Fix it.")
    log.answer("a1", *READS)
    log.record("last-prompt", leafUuid="x")  # also amid an answer
    log.say("user", RESULTS)
    log.answer("a2", DONE)
    log.record("last-prompt", leafUuid="y")
    log.more = {"version": ["?"], "cwd": None, "gitBranch": 3}
    log.say("user", "Again.")
    log.answer("a3", DONE)
    first, second, third = (dict(e.headers) for e in imported(log.path))
    assert first == second
    assert first == {
        "x-claude-code-session-id": "s1-of-the-session",
        "user-agent": "claude-cli/2.1.197",
        "x-claude-code-cwd": "/me/app",
        "x-claude-code-git-branch": "main",
    }
    assert third == {
        "x-claude-code-session-id": "s1-of-the-session",
        "x-claude-code-start": "1",
    }


def test_attachments_become_inline_system_messages(log: SessionLog) -> None:
    def attach(content: Any) -> None:
        log.record(
            "attachment", uuid=f"x{log.t}", parentUuid=log.last, attachment=content
        )
        log.last = f"x{log.t - 1}"

    log.say("user", "Fix it.")
    attach({"type": "agent_listing_delta", "addedLines": ["- Plan"], "isInitial": True})
    attach({"type": "skill_listing", "content": "- verify", "names": ["verify"]})
    log.answer("a1", *READS)
    log.say("user", RESULTS)
    attach({"type": "task_reminder", "content": []})
    attach({"type": "hook_success", "content": "not in the prompt"})
    attach(["?"])
    log.answer("a2", DONE)
    first, second = messages(imported(log.path))
    listed = [
        {"type": "text", "text": "agent_listing_delta\n- Plan"},
        {"type": "text", "text": "skill_listing\n- verify"},
    ]
    assert first == [
        {"role": "user", "content": "Fix it."},
        {"role": "system", "content": listed},
    ]
    assert second[:2] == first
    assert second[4:] == [{"role": "system", "content": "task_reminder"}]
