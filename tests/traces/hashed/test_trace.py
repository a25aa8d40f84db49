"""Hashed traces of others: Weka's sessions and Mooncake's lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxlab import misses, sweep, tune
from mlxlab.errors import TraceError
from mlxlab.prompt import Role
from mlxlab.traces import write_trace
from mlxlab.traces.hashed.base import HASHED_FORMATS, HashedFormat
from mlxlab.traces.hashed.mooncake import Mooncake
from mlxlab.traces.hashed.trace import HashedRequest, HashedTrace
from mlxlab.traces.hashed.weka import Weka
from mlxlab.traces.open import open_traces, read_trace
from mlxlab.traces.trace import Exchange, Trace
from tests.support.hashes import (
    mooncake_lines,
    weka_session,
    write_mooncake,
    write_weka,
)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_session_is_read_in_order_of_time(name: str, tmp_path: Path) -> None:
    trace = Weka().open(write_weka(tmp_path / name))
    assert (trace.name, trace.unit) == ("a", 64)
    requests = list(trace)
    assert [r.t for r in requests] == [0.0, 2.0, 3.0, 4.0, 9.0]
    assert [r.agent for r in requests] == ["", "agent_001", "", "agent_001", ""]
    assert [r.tokens for r in requests] == [256, 130, 330, 200, 200]
    assert requests[3].chained.tolist() == [7, 8, 9]
    assert requests[0].roles == ((Role.TOOLS, 70), (Role.SYSTEM, 60))
    assert requests[1].roles == ((Role.TOOLS, 64), (Role.SYSTEM, 30))
    assert [r.t for r in trace] == [0.0, 2.0, 3.0, 4.0, 9.0]  # and again


def changed(path: str, value: Any) -> Any:
    session: Any = weka_session()
    *keys, last = path.split(".")
    at = session
    for key in keys:
        at = at[int(key) if key.isdigit() else key]
    at[last] = value
    return session


@pytest.mark.parametrize(
    ("session", "says"),
    [
        ([], "file: Input should be"),
        (changed("block_size", 0), "block_size: Input should be greater"),
        (changed("requests.0.in", 0), "requests.0.n.in: Input should be greater"),
        (changed("requests.0.hash_ids", [-1]), "hash_ids.0: Input should be greater"),
        (changed("requests.0.hash_ids", [2**31]), "hash_ids.0: Input should be less"),
        (changed("requests.0.hash_ids", [2**24]), "hash_ids.0: Input should be less"),
        (changed("requests.0.hash_ids", [True]), "hash_ids.0: Input should be a"),
        (changed("requests.0.hash_ids", ["1"]), "hash_ids.0: Input should be a"),
        (changed("requests.0.hash_ids", None), "hash_ids: Input should be a"),
        (changed("requests.0.type", "x"), "requests.0: Input tag 'x'"),
        (changed("block_size", 2**20 + 1), "block_size: Input should be less"),
        *(
            (changed("requests.1.requests.0.t", t), "requests.0.t: Input should be")
            for t in (None, "1", -1, 1e308, True, float("nan"), float("inf"), 10**30)
        ),
    ],
)
def test_a_bad_session_is_refused(session: Any, says: str, tmp_path: Path) -> None:
    path = write_weka(tmp_path / "a.json", session)
    with pytest.raises(TraceError) as caught:
        Weka().open(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\x1f\x8b", b"\x1f\x8bxyz", b"\0\1\2"])
def test_a_damaged_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(data)
    for form in (Weka(), Mooncake()):
        with pytest.raises(TraceError, match=r"a\.json\.gz"):
            list(form.requests(path))
    with pytest.raises(TraceError, match="No such file"):
        list(Weka().requests(tmp_path / "none"))


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_lines_are_requests(name: str, tmp_path: Path) -> None:
    trace = Mooncake().open(write_mooncake(tmp_path / name))
    first, second = trace
    assert (trace.unit, first.t, second.t) == (512, 0.0, 1.5)
    # A block that is not full cannot be restored.
    assert (first.tokens, first.chained.tolist()) == (1100, [0, 1])
    assert second.chained.tolist() == [0, 1, 3]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    lines = mooncake_lines()
    lines[1]["input_length"] = "many"
    path = write_mooncake(tmp_path / "m.jsonl", lines)
    with pytest.raises(TraceError, match=r"m\.jsonl:2: input_length: .*; accepted"):
        list(Mooncake().requests(path))


def test_what_is_opened_is_told_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    write_weka(folder / "w.json.gz")
    write_mooncake(folder / "m.jsonl")
    opened = open_traces([folder, "sessions"])
    assert [type(trace) for trace in opened] == [HashedTrace, HashedTrace, Trace]
    assert [trace.name for trace in opened] == ["m", "w", "sessions"]


def test_a_folder_is_read_as_published(tmp_path: Path) -> None:
    """Sessions of kv-cache-tester are not packed, and have other files beside them."""
    write_weka(tmp_path / "a.json")
    write_weka(tmp_path / "b.json.gz")
    (tmp_path / "results.json").write_text('{"rates": [1]}')
    (tmp_path / "rates.txt").write_text("1\n")
    os.mkfifo(tmp_path / "pipe.json")
    assert [trace.name for trace in open_traces(tmp_path)] == ["a", "b"]
    for path in (tmp_path, tmp_path / "a.json", tmp_path / "b.json.gz"):
        found = sweep(path, strategies="paged", scheduler="here", progress=False)
        assert found.to_dict()
        assert misses(path, progress=False).to_dict()


@pytest.mark.parametrize(
    "line",
    [
        {"timestamp": -1},
        {"timestamp": "0"},
        {"timestamp": True},
        {"timestamp": 1e300},
        {"timestamp": None},
        {"input_length": 2**31},
        {"input_length": True},
        {"hash_ids": [2**24]},
    ],
)
def test_an_odd_line_is_named(line: dict[str, Any], tmp_path: Path) -> None:
    first, second = mooncake_lines()
    path = write_mooncake(tmp_path / "m.jsonl", [first, second | line])
    (name,) = line
    with pytest.raises(TraceError, match=rf"m\.jsonl:2: {name}.*accepted:"):
        list(Mooncake().open(path))


@pytest.mark.parametrize(
    "data",
    [
        b'{"block_size":64,"requests":[]}',
        b'{"block_size":64,"requests":[{"type":"subagent","t":0,"requests":[]}]}',
        b'{"kind":"hashed","unit":64}\n',
    ],
    ids=["weka", "agents", "hashed"],
)
def test_a_trace_without_requests_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    for use in (misses, partial(sweep, scheduler="here"), tune):
        with pytest.raises(TraceError, match=r"a\.json: no request"):
            use(path, progress=False)


def test_a_name_need_not_be_unicode(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.json")
    write_weka(path)
    assert read_trace(path).name == r"\udcff"
    assert misses(path, progress=False).to_dict()


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no trace in it; accepted:"):
        open_traces([tmp_path])
    with pytest.raises(TraceError, match="no such file; bundled traces: compact"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(TraceError, match="not a trace; accepted"):
        read_trace(tmp_path / "other.jsonl")


class Lengths(HashedFormat):
    """A new format: one class."""

    name = "lengths"
    summary = "prompt lengths, one per line"
    signature = b"#lengths"

    def unit(self, path: Path) -> int:
        return 10

    def requests(self, path: Path) -> Iterator[HashedRequest]:
        for t, line in enumerate(path.read_text().splitlines()[1:]):
            yield HashedRequest(
                t, int(line), np.arange(int(line) // 10, dtype=np.int32)
            )


def test_a_new_hashed_format_is_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text("# lengths\n25\n40\n")
    with pytest.raises(TraceError, match="not JSON"):
        read_trace(path)
    monkeypatch.setattr(HASHED_FORMATS, "_formats", {**HASHED_FORMATS})
    HASHED_FORMATS.register(Lengths)
    trace = read_trace(path)
    assert isinstance(trace, HashedTrace)
    assert (trace.unit, [r.tokens for r in trace]) == (10, [25, 40])


def test_a_tool_does_not_make_a_recorded_trace_a_hashed_one(tmp_path: Path) -> None:
    body: dict[str, Any] = {
        "tools": [{"input_schema": {"properties": {"block_size": {}}}}]
    }
    exchange = Exchange(0, 1.0, "POST", "/v1/messages", {}, body)
    path = tmp_path / "t.jsonl"
    write_trace(Trace("t", (exchange,)), path)
    assert b'"block_size"' in path.read_bytes()
    assert isinstance(read_trace(path), Trace)
