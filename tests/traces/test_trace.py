"""Traces are read back as they were sent, and damage is named by its line."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxlab.errors import TraceError
from mlxlab.traces import (
    Exchange,
    Response,
    Trace,
    TraceWriter,
    read_trace,
    write_trace,
)
from mlxlab.traces.schema import HeaderLine, body_hash
from mlxlab.traces.trace import PARTIAL_LINE
from tests.support.trace_samples import HEADERS, SESSION, request

ANSWER = Response(t=2.0, status=200, first_byte_s=0.1, message={"content": []})

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
blocks = st.dictionaries(
    st.sampled_from(["type", "text", "content", "cache_control"]), json_values
)
bodies = st.dictionaries(
    st.sampled_from(["system", "tools", "messages", "model", "cache_control"]),
    json_values | st.lists(blocks | json_values, max_size=3),
)


def record(path: Path, bodies: list[dict[str, Any] | None]) -> Path:
    with TraceWriter(path) as writer:
        for body in bodies:
            writer.request(
                t=1.0, method="POST", path="/v1/messages", headers=HEADERS, body=body
            )
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(bodies, max_size=3))
def test_any_json_is_read_back_as_sent(path: Path, sent: list[Any]) -> None:
    path.unlink(missing_ok=True)
    read = [e.body for e in read_trace(record(path, sent))]
    assert read == sent
    for one, other in zip(read, sent, strict=True):
        # Top-level order is free, the order in blocks is not.
        assert one is not None
        assert all(json.dumps(one[key]) == json.dumps(other[key]) for key in one)


def test_a_request_is_restored_with_its_marks_and_shapes(path: Path) -> None:
    nested = {"type": "text", "text": "x", "cache_control": None}
    result = {"type": "tool_result", "content": [nested]}
    sent: list[dict[str, Any] | None] = [
        request(3),
        {"messages": [], "system": "You help."},
        {"messages": [{"role": "user", "content": [result]}], "tools": []},
        {"messages": None, "tools": None, "cache_control": {"type": "ephemeral"}},
        None,
    ]
    assert [e.body for e in read_trace(record(path, sent))] == sent


def test_a_session_costs_its_last_request_and_a_little_per_turn(path: Path) -> None:
    sent = [request(turn, "line of output\n" * 60) for turn in range(40)]
    last = len(json.dumps(sent[-1]))
    size = record(path, [*sent]).stat().st_size
    assert size <= 1.5 * last
    assert (size - last) / 40 < 700


def test_cost_per_turn_stays_flat(path: Path) -> None:
    def turn_cost(turns: int) -> float:
        name = path.with_stem(f"t{turns}")
        record(name, [request(turn) for turn in range(turns)])
        return name.stat().st_size / turns

    assert turn_cost(120) < turn_cost(40)


def test_a_response_belongs_to_its_request(path: Path) -> None:
    with TraceWriter(path) as writer:
        for t in (5.0, 3.0):
            id = writer.request(t=t, method="GET", path="/", headers={}, body=None)
        writer.response(id, ANSWER)
    late, early = read_trace(path).exchanges[::-1]
    assert (early.t, early.response) == (3.0, ANSWER)
    assert (late.t, late.response) == (5.0, None)


def test_session_and_agent_are_read_off_header_or_metadata() -> None:
    exchange = Exchange(0, 0.0, "POST", "/v1/messages", {}, {"messages": []})
    user = {"user_id": json.dumps({"session_id": SESSION})}
    assert exchange.session == "session"
    assert replace(exchange, body={"metadata": user}).session == SESSION[:8]
    headers = {"x-claude-code-session-id": "abcdefghij", "x-claude-code-agent-id": "a1"}
    other = replace(exchange, headers=headers, body={"metadata": user})
    assert (other.session, other.agent) == ("abcdefgh", "a1")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/messages?beta=true", True),
        ("POST", "/v1/messages/count_tokens?beta=true", False),
        ("HEAD", "/v1/messages", False),
        ("GET", "/v1/models", False),
        ("POST", "//[", False),
        ("POST", "//[/v1/messages?a=[", True),
        ("POST", "", False),
    ],
)
def test_inference_is_told_from_the_rest(
    method: str, path: str, expected: bool
) -> None:
    assert Exchange(0, 0.0, method, path, {}, None).is_inference is expected


@pytest.mark.parametrize("depth", [199, 200])
def test_what_is_written_can_be_read(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    asked = Exchange(0, 1.0, "POST", "/v1/messages", {}, nested(depth))
    if depth < 200:  # the line is one more object
        write_trace(Trace("deep", (asked,)), path)
        assert read_trace(path).exchanges[0].body == nested(depth)
    else:
        with pytest.raises(TraceError, match="nested too deeply"):
            write_trace(Trace("deep", (asked,)), path)


def test_a_session_is_printable_unicode() -> None:
    headers = {"x-claude-code-session-id": "\ud800", "x-claude-code-agent-id": "\udfff"}
    exchange = Exchange(0, 0.0, "POST", "/v1/messages", headers, None)
    assert (exchange.session, exchange.agent) == (r"\ud800", r"\udfff")


def test_the_digest_is_of_the_content_only(path: Path, tmp_path: Path) -> None:
    trace = read_trace(record(path, [request(1), request(2)]))
    copy = tmp_path / "copy.jsonl"
    write_trace(trace, copy)
    assert read_trace(copy).digest == trace.digest
    first = replace(trace.exchanges[0], t=0.5)
    changed = replace(trace, exchanges=(first, *trace.exchanges[1:]))
    assert changed.digest != trace.digest


def test_representations_are_short_and_escaped(path: Path) -> None:
    trace = read_trace(record(path, [request()]))
    assert repr(trace) == (
        "Trace('trace', 1 inference requests of 1, 1 sessions, 0.0 s)"
    )
    html = replace(trace, name="<b>")._repr_html_()
    assert "&lt;b&gt;" in html
    assert SESSION[:8] in html


def test_a_trace_file_is_its_owners_and_never_overwritten(path: Path) -> None:
    record(path, [request()])
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(TraceError, match=r"exists; give the name of a new file"):
        TraceWriter(path)
    assert path.read_bytes() == before


def test_what_is_no_json_leaves_no_trace(path: Path) -> None:
    hopeless: Any = []
    for _ in range(100_000):
        hopeless = [hopeless]
    with TraceWriter(path) as writer:
        for bad in (float("nan"), hopeless):
            body = {"messages": [{"role": "user", "content": "new"}, bad]}
            with pytest.raises(TraceError):
                writer.request(t=1.0, method="POST", path="/", headers={}, body=body)
        body = {"messages": [{"role": "user", "content": "new"}]}
        writer.request(t=1.0, method="POST", path="/", headers={}, body=body)
    assert [e.body for e in read_trace(path)] == [body]


def test_writing_a_whole_trace_fails_without_a_rest(tmp_path: Path) -> None:
    exchange = Exchange(0, 0.0, "POST", "/", {}, {"x": float("inf")})
    with pytest.raises(TraceError):
        write_trace(Trace("bad", (exchange,)), tmp_path / "bad.jsonl")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from mlxlab.traces import TraceWriter
from tests.support.trace_samples import request
with TraceWriter(sys.argv[1]) as writer:
    for turn in range(10**6):
        body = request(1, output=f"{turn} " * 20_000)
        writer.request(t=turn, method="POST", path="/", headers={}, body=body)
        print(turn, flush=True)
"""


def test_a_killed_recorder_loses_at_most_the_last_record(path: Path) -> None:
    for records in (1, 6):
        path.unlink(missing_ok=True)
        command = [sys.executable, "-c", KILLED, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as recorder:
            assert recorder.stdout is not None
            reported = [next(recorder.stdout) for _ in range(records)]
            recorder.kill()
            reported += recorder.stdout.readlines()
        trace = read_trace(path)
        complete = [line for line in reported if line.endswith("\n")]
        assert len(trace) in (len(complete), len(complete) + 1)
        assert sum(trace.skipped.values()) <= 1


def test_a_file_cut_anywhere_is_read_up_to_the_cut(path: Path) -> None:
    whole = record(path, [request(1), request(2)]).read_bytes()
    header = whole.index(b"\n") + 1
    for end in range(header, len(whole) - 1, 97):
        path.write_bytes(whole[:end])
        trace = read_trace(path)
        partial = whole[end - 1 : end] != b"\n"
        assert trace.skipped == ({PARTIAL_LINE: 1} if partial else {})
        assert len(trace) < 2


def test_what_was_skipped_travels_with_the_trace(path: Path) -> None:
    header = HeaderLine(skipped={"corrupt line skipped": 2})
    write_trace(Trace("t", (), header), path)
    assert read_trace(path).skipped == {"corrupt line skipped": 2}
    path.write_bytes(path.read_bytes() + b'{"kind":')
    trace = read_trace(path)
    write_trace(trace, path)
    again = read_trace(path)
    assert again.skipped == {"corrupt line skipped": 2, PARTIAL_LINE: 1}


def test_nothing_skipped_is_not_mentioned(path: Path) -> None:
    record(path, [request()])
    assert b"skipped" not in path.read_bytes().splitlines()[0]


HEADER = '{"kind":"trace","version":1,"recorder":"r","created":"c"}'
HASH = body_hash({"a": 1})
REQUEST = {"kind": "request", "id": 0, "t": 1.0, "method": "POST", "path": "/"}


def nested(depth: int) -> Any:
    """Return an object with others in it, this many in all."""
    value: Any = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def line(**changes: Any) -> str:
    return json.dumps({**REQUEST, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r":0: empty"),
        ('{"kind":"request"}', r":1: not a trace"),
        ('{"kind":"trace","version":2}', r":1: version 2; accepted: version 1"),
        ("{", r":1: not JSON"),
        (f"{HEADER}\nnonsense\n{line()}\n", r":2: not JSON"),
        (f"{HEADER}\n\0\x01\n", r":2: binary data"),
        (f"{HEADER}\n[1]\n", r":2: a list"),
        (f"{HEADER}\n{HEADER}\n", r":2: a second line of kind 'trace'"),
        (f'{HEADER}\n{{"kind":"image"}}\n', r":2: .*image.*'trace', 'body'"),
        (f'{HEADER}\n{{"kind":"request"}}\n', r":2: request.id: Field required"),
        (
            f"{HEADER}\n{line(params={}, tools=[HASH])}\n",
            rf":2: body {HASH} is missing",
        ),
        (
            f'{HEADER}\n{{"kind":"body","hash":"{HASH}","body":{{"a":2}}}}\n',
            rf":2: body {HASH} hashes to .*changed",
        ),
        (f"{HEADER}\n{line(tools=[])}\n", r":2: .*lists without params"),
        (f"{HEADER}\n{line(params={}, tools=[[7, 1]])}\n", r":2: tools: request 7 has"),
        (f"{HEADER}\n{line()}\n{line()}\n", r":3: request id 0 is used twice"),
        (
            f'{HEADER}\n{{"kind":"response","id":4,"t":1,"status":200,"first_byte_s":0}}\n',
            r":2: a response to request 4, which is missing",
        ),
        (
            f"{HEADER}\n{line(params={}, cache_control=[[['tools', 3], 1]])}\n",
            r":2: cache_control: a path without a block",
        ),
        (f"{HEADER}\n{line(t='NaN')}\n".replace('"NaN"', "NaN"), r":2: .*finite"),
        (f"{HEADER}\n{line(t='big')}\n".replace('"big"', "1e999"), r":2: .*finite"),
        (f"{HEADER}\n{'[' * 200_000}\n", r":2: nested too deeply"),
        (f"{HEADER}\n{line(params={'a': 'b'}, extra=1)}\n", r":2: .*extra"),
        (f"{HEADER}\n{line(params=nested(200))}\n", r":2: nested too deeply"),
        *(
            (f"{HEADER}\n{line(**{key: value})}\n", rf":2: request.{key}: ")
            for key, value in [
                *(("t", t) for t in (None, "1", -1, 1e308, True, 10**30)),
                *(("id", id) for id in (None, "1", -1, 1.5, True)),
            ]
        ),
    ],
)
def test_damage_is_named_by_its_line(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_binary_files_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "model.safetensors"
    binary.write_bytes(bytes(range(256)) * 10)
    for bad in (binary, tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(TraceError, match=str(bad)):
            read_trace(bad)


def test_two_exchanges_of_one_id_are_refused() -> None:
    exchange = Exchange(0, 0.0, "POST", "/", {}, None)
    with pytest.raises(TraceError, match="an id is used twice"):
        Trace("twice", (exchange, exchange))
