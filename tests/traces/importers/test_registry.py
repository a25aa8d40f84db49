"""Formats are recognized, named and added."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlxlab.cli import app
from mlxlab.errors import TraceError
from mlxlab.traces.importers import IMPORTERS, Importer, Selection, import_trace
from mlxlab.traces.importers.base import parse_date
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.trace import Exchange
from tests.support.hashes import write_mooncake
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
    with pytest.raises(TraceError, match="found within the filters"):
        import_trace(path, form, since="2100-01-01", progress=False)
    trace = import_trace(path, form, since=0.0, limit=1, progress=False)
    assert len(trace) == 1


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


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    for path in (tmp_path / "empty", tmp_path / "other.jsonl"):
        with pytest.raises(TraceError, match="capture, claude-code, claude-trace, te"):
            import_trace(path)
    with pytest.raises(TraceError, match="no format 'x'; choose from auto, capture, c"):
        import_trace(tmp_path, "x")


def test_what_two_formats_recognize_has_to_be_named(tmp_path: Path) -> None:
    path = make("claude-code", tmp_path / "x")
    test_telemetry.put(path, "a", 1.0, test_telemetry.body("Hello."))
    with pytest.raises(TraceError, match="looks like claude-code, telemetry; name"):
        import_trace(path)
    trace = import_trace(path, "telemetry", progress=False)
    assert trace.header.notes["imported"] == "telemetry"


def test_a_hashed_trace_is_not_imported(tmp_path: Path) -> None:
    path = write_mooncake(tmp_path / "m.jsonl")
    with pytest.raises(TraceError, match=r"hashed trace \(mooncake\).*mlxlab sweep"):
        import_trace(path)


def test_only_a_history_has_projects(tmp_path: Path) -> None:
    path = make("capture", tmp_path / "x")
    with pytest.raises(TraceError, match="by project; accepted: limit, since"):
        import_trace(path, project="p")


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01"])
def test_a_bad_date_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="give one such as 2026-11-23"):
        parse_date(text)


def test_a_bad_limit_is_refused() -> None:
    with pytest.raises(TraceError, match="limit 0"):
        Selection(limit=0)


PLUGIN = """
from mlxlab.traces.importers import IMPORTERS, Importer

@IMPORTERS.register
class Mine(Importer):
    name = "mine"
    summary = "a format of another package"

    def recognizes(self, path):
        return False

    def exchanges(self, path, selection, tally, *, progress):
        return []
"""


class Notes(Importer):
    """One prompt per line of a text file; all that a new format has to define."""

    name = "notes"
    summary = "prompts, one per line of a .notes file"

    def recognizes(self, path: Path) -> bool:
        return path.suffix == ".notes"

    def exchanges(
        self, path: Path, selection: Selection, tally: Tally, *, progress: bool
    ) -> Iterator[Exchange]:
        for t, line in enumerate(path.read_text().splitlines()):
            if not line:
                tally.add("empty line skipped")
                continue
            messages = [{"role": "user", "content": tally.cleaned(line)}]
            body = {"model": "m", "messages": messages}
            yield Exchange(0, float(t), "POST", "/v1/messages", {}, body)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the new format, which is registered for one test."""
    monkeypatch.setattr(IMPORTERS, "_formats", {**IMPORTERS})
    IMPORTERS.register(Notes)
    path = tmp_path / "mine.notes"
    path.write_text("One.\n\nTwo.\n")
    return path


def test_a_new_format_is_one_class(notes: Path, tmp_path: Path) -> None:
    trace = import_trace(notes, progress=False)
    prompts = [(e.body or {})["messages"][0]["content"] for e in trace]
    assert prompts == ["One.", "Two."]
    assert trace.header.notes["imported"] == "notes"
    assert trace.skipped == {"empty line skipped": 1}
    assert len(import_trace(notes, "notes", limit=1, progress=False)) == 1
    with pytest.raises(TraceError, match=r"choose from auto, .*, notes, telemetry"):
        import_trace(notes, "x")
    with pytest.raises(TraceError, match=r"known format; if it is one of .*, notes, "):
        import_trace(tmp_path)


def test_a_new_format_is_listed_and_read_by_the_shell(
    notes: Path, tmp_path: Path
) -> None:
    shown = CliRunner().invoke(app, ["import-trace", "--help"]).stdout
    assert Notes.summary in shown
    assert "accepts --project" in " ".join(shown.split())
    out = tmp_path / "out.jsonl"
    done = CliRunner().invoke(app, ["import-trace", str(notes), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "empty line skipped (1 times)" in done.stdout


def test_a_name_stands_for_one_format(notes: Path) -> None:
    class Again(Notes):
        pass

    with pytest.raises(TraceError, match=r"Again: format 'notes' is taken by .*Notes"):
        IMPORTERS.register(Again)
    IMPORTERS.register(Notes)  # as a notebook cell that runs again does
    built_in = type("Mine", (Notes,), {"name": "capture"})
    with pytest.raises(TraceError, match=r"'capture' is taken by .*capture.Capture"):
        IMPORTERS.register(built_in)


def test_a_name_is_taken_before_its_module_is_imported() -> None:
    code = PLUGIN.replace('"mine"', '"capture"')
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "format 'capture' is taken by mlxlab.traces.importers.ca" in done.stderr


def test_installed_packages_add_formats(tmp_path: Path) -> None:
    (tmp_path / "my_formats.py").write_text(PLUGIN)
    metadata = tmp_path / "my_formats-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-formats\n")
    (metadata / "entry_points.txt").write_text(
        "[mlxlab.formats]\nmine = my_formats\nbroken = not_there\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "mlxlab", "import-trace", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "a format of another package" in done.stdout
    assert "capture" in done.stdout
    assert "formats of not_there are not available" in done.stderr
