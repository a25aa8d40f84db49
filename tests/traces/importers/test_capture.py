"""Plain captures become traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxlab.errors import TraceError
from mlxlab.traces import read_trace, write_trace
from mlxlab.traces.importers.capture import Capture
from tests.support.trace_samples import HEADERS, SESSION, request


def captured(t: float, body: Any, **more: Any) -> str:
    one = {
        "t": t,
        "method": "post",
        "path": "/v1/messages?beta=true",
        "headers": HEADERS,
    }
    return json.dumps({**one, "body": body, **more}) + "\n"


def test_a_capture_is_ordered_cleaned_and_survives_writing(tmp_path: Path) -> None:
    path = tmp_path / "capture.jsonl"
    answer = {"role": "assistant", "content": []}
    lines = [captured(2.0, request(2)), captured(1.0, request(1), response=answer)]
    path.write_text("".join(lines))
    trace = Capture().read(path)
    assert [e.body for e in trace] == [request(1), request(2)]
    assert [e.id for e in trace] == [0, 1]
    first, second = trace.exchanges
    assert first.response is not None
    assert first.response.message == answer
    assert second.response is None
    assert first.session == SESSION[:8]
    assert "x-api-key" not in first.headers
    write_trace(trace, tmp_path / "trace.jsonl")
    assert read_trace(tmp_path / "trace.jsonl").digest == trace.digest


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        (captured(1.0, {}) + "{", ":2: not JSON"),
        (captured(1.0, []), ":1: body: "),
        ('{"t": 1}\n', ":1: method: Field required; accepted: t, method"),
        ("[" * 100_000 + "\n", ":1: not JSON .*nested too deeply"),
        (captured(1.0, {"a": "_"}).replace('"_"', "[" * 300 + "]" * 300), "too deeply"),
        *((captured(t, {}), ":1: t: ") for t in (-1.0, 1e300, True)),
    ],
)
def test_a_bad_capture_is_named_by_its_line(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "capture.jsonl"
    path.write_text(content)
    with pytest.raises(TraceError, match=reason) as caught:
        Capture().read(path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for bad in (tmp_path, tmp_path / "none"):
        with pytest.raises(TraceError, match=str(bad)):
            Capture().read(bad)
