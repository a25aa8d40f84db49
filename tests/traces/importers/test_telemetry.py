"""OpenTelemetry's raw bodies become the requests that were sent."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlxlab.errors import TraceError
from mlxlab.traces.importers.telemetry import Telemetry
from mlxlab.traces.trace import Trace

T = 1_760_000_000.0
HIDDEN = {"type": "thinking", "thinking": "<REDACTED>", "signature": "s"}
BILLING = "x-anthropic-billing-header: cc_version=2.1.330.{}; cc_entrypoint=cli;{}"
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "ok"}]}


def body(text: str, suffix: str = "0aa", *, agent: bool = False) -> dict[str, Any]:
    line = BILLING.format(suffix, " cc_is_subagent=true;" if agent else "")
    return {
        "model": "m",
        "system": [{"type": "text", "text": line}],
        "messages": [{"role": "user", "content": text}],
        "betas": ["b1", "b2"],
        "max_tokens": 9,
    }


def put(folder: Path, id: str, t: float, request: Any, answer: Any = ANSWER) -> None:
    """A request at ``t``; an answer, if any, a second later."""
    path = folder / f"{id}.request.json"
    path.write_text(json.dumps(request))
    os.utime(path, (t, t))
    if answer is None:
        return
    (folder / f"{id}-a.response.json").write_text(json.dumps(answer))
    line = {
        "timestamp": datetime.fromtimestamp(t + 1, UTC).isoformat(),
        "session_id": "session-1",
        "query_source": "sdk",
        "request_file": path.name,
        "response_file": f"{id}-a.response.json",
    }
    with (folder / "index.jsonl").open("a") as index:
        index.write(json.dumps(line) + "\n")


def imported(folder: Path) -> Trace:
    return Telemetry().read(folder, progress=False)


def test_requests_and_answers_are_read_in_order(tmp_path: Path) -> None:
    put(tmp_path, "b", T + 5, body("two", "1bb", agent=True))
    put(tmp_path, "a", T, body("one"))
    first, second = imported(tmp_path)
    expected = body("one")
    del expected["betas"]
    assert first.body == expected
    assert (first.id, first.t, first.session, first.agent) == (0, T, "session-", "")
    assert first.headers["anthropic-beta"] == "b1,b2"
    assert first.response is not None
    assert (first.response.t, first.response.message) == (T + 1, ANSWER)
    assert second.agent == "1bb"


def test_copied_files_are_dated_by_their_answers(tmp_path: Path) -> None:
    put(tmp_path, "a", T, body("one"))
    os.utime(tmp_path / "a.request.json", (T + 999, T + 999))
    [exchange] = imported(tmp_path)
    assert exchange.t == T + 1


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "a", T, body("one"), None)
    put(tmp_path, "b", T, {"not_recorded": "private"})
    put(tmp_path, "c", T, [])
    redacted = body("four")
    redacted["messages"].append({"role": "assistant", "content": [HIDDEN]})
    put(tmp_path, "d", T + 1, redacted)
    (tmp_path / "d-a.response.json").unlink()
    with (tmp_path / "index.jsonl").open("a") as index:
        index.write('{"request_file": "../../etc/passwd"}\n')
    first, second = trace = imported(tmp_path)
    assert first.response is second.response is None
    assert trace.skipped == {
        "file that is not a JSON object skipped": 1,
        "line of the index without file or time skipped": 1,
        "request whose body was withheld skipped": 1,
        "request with its thinking redacted": 1,
        "request without an answer, dated by its file": 1,
    }


def test_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no request of format telemetry found"):
        imported(tmp_path)
