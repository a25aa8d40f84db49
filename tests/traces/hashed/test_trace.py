"""Hashed traces of others: Weka's sessions and Mooncake's lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxlab.errors import TraceError
from mlxlab.prompt import Role
from mlxlab.traces.hashed.mooncake import open_mooncake, read_mooncake
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.hashed.weka import open_weka, read_weka
from mlxlab.traces.open import open_traces, read_trace
from mlxlab.traces.trace import Trace
from tests.support.hashes import (
    mooncake_lines,
    weka_session,
    write_mooncake,
    write_weka,
)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_session_is_read_in_order_of_time(name: str, tmp_path: Path) -> None:
    trace = open_weka(write_weka(tmp_path / name))
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
        (changed("requests.0.type", "x"), "requests.0: Input tag 'x'"),
    ],
)
def test_a_bad_session_is_refused(session: Any, says: str, tmp_path: Path) -> None:
    path = write_weka(tmp_path / "a.json", session)
    with pytest.raises(TraceError) as caught:
        open_weka(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\x1f\x8b", b"\x1f\x8bxyz", b"\0\1\2"])
def test_a_damaged_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(data)
    for read in (read_weka, read_mooncake):
        with pytest.raises(TraceError, match=r"a\.json\.gz"):
            list(read(path))
    with pytest.raises(TraceError, match="No such file"):
        list(read_weka(tmp_path / "none"))


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_lines_are_requests(name: str, tmp_path: Path) -> None:
    trace = open_mooncake(write_mooncake(tmp_path / name))
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
        list(read_mooncake(path))


def test_what_is_opened_is_told_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    write_weka(folder / "w.json.gz")
    write_mooncake(folder / "m.jsonl")
    opened = open_traces([folder, "sessions"])
    assert [type(trace) for trace in opened] == [HashedTrace, HashedTrace, Trace]
    assert [trace.name for trace in opened] == ["m", "w", "sessions"]


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no trace in it; accepted:"):
        open_traces([tmp_path])
    with pytest.raises(TraceError, match="no such file; recorded ones: compact"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(TraceError, match="no trace; accepted"):
        read_trace(tmp_path / "other.jsonl")
