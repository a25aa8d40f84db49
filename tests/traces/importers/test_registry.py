"""A format is recognized, or named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxlab.errors import TraceError
from mlxlab.traces.importers import IMPORTERS, Selection, import_trace, parse_date
from tests.support.histories import SessionLog
from tests.support.trace_samples import request
from tests.traces.importers import test_claude_trace, test_telemetry
from tests.traces.importers.test_capture import captured


def make(form: str, folder: Path) -> Path:
    """Something of a format."""
    folder.mkdir()
    match form:
        case "claude-code":
            log = SessionLog(folder / "p" / "s.jsonl")
            log.shape()
            log.request("r1", log.blob({"role": "user", "content": "Hello."}))
        case "telemetry":
            test_telemetry.put(folder, "a", 1.0, test_telemetry.body("Hello."))
        case "claude-trace":
            (folder / "log.jsonl").write_text(test_claude_trace.pair(1.0, None))
        case "capture":
            path = folder / "capture.jsonl"
            path.write_text(captured(1.0, request()))
            return path
    return folder


@pytest.mark.parametrize("form", IMPORTERS)
def test_every_format_is_recognized_for_what_it_is(form: str, tmp_path: Path) -> None:
    path = make(form, tmp_path / "x")
    recognizing = [i.name for i in IMPORTERS.values() if i.recognizes(path)]
    assert recognizing == [form]
    trace = import_trace(path, progress=False)
    assert trace.header.notes["imported"] == form
    assert import_trace(path, form, progress=False).digest == trace.digest


@pytest.mark.parametrize("form", IMPORTERS)
def test_every_format_can_be_limited(form: str, tmp_path: Path) -> None:
    path = make(form, tmp_path / "x")
    late = Selection(since=parse_date("2100-01-01"))
    with pytest.raises(TraceError, match="that was asked for found"):
        import_trace(path, form, late, progress=False)


def test_the_history_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TraceError, match=r"\.claude/projects: No such file"):
        import_trace(progress=False)
    (tmp_path / ".claude").mkdir()
    make("claude-code", tmp_path / ".claude/projects")
    assert len(import_trace(progress=False)) == 1
    with pytest.raises(TraceError, match="format telemetry: give the path"):
        import_trace(format="telemetry")


def test_what_nobody_recognizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(bytes(range(256)))
    for path in (tmp_path, tmp_path / "x.jsonl"):
        with pytest.raises(TraceError, match="claude-code, telemetry, claude-trace, c"):
            import_trace(path)
    with pytest.raises(TraceError, match="no format 'x'; choose from auto, claude-co"):
        import_trace(tmp_path, "x")


def test_only_a_history_has_projects(tmp_path: Path) -> None:
    path = make("capture", tmp_path / "x")
    with pytest.raises(TraceError, match="capture knows no projects"):
        import_trace(path, selection=Selection(project="p"))


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01"])
def test_a_bad_date_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="give one such as 2026-11-23"):
        parse_date(text)


def test_a_bad_limit_is_refused() -> None:
    with pytest.raises(TraceError, match="limit 0"):
        Selection(limit=0)
