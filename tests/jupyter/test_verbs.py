"""The verbs as line magics: what they return, how they refuse, what they complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError

import mlxlab
from mlxlab.analysis.comparison import Comparison
from mlxlab.analysis.misses.result import Misses
from mlxlab.jupyter.verbs import VERBS
from mlxlab.replay.cost_model import CostModel
from mlxlab.traces import Trace, write_trace
from tests.support.exchanges import small_trace

NAMES = [name.replace("-", "_") for name in VERBS]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl"
    write_trace(small_trace(), path)
    return path


def completed(shell: Any, line: str) -> list[str]:
    with provisionalcompleter():
        return [found.text for found in shell.Completer.completions(line, len(line))]


def test_every_verb_of_python_is_a_magic(shell: Any) -> None:
    results = {"read_result"}  # reads what a verb wrote
    verbs = {
        name
        for name in mlxlab.__all__
        if name.islower() and not name.startswith(("find_", "make_", "bundled_"))
    }
    magics = shell.magics_manager.magics["line"]
    assert verbs - results <= {*NAMES, "serve"} <= magics.keys()


def test_a_magic_returns_the_result_of_the_verb(
    shell: Any, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = shell.run_line_magic(
        "compare", f"{trace} --simulate --strategies prefix@none,paged  # quick"
    )
    assert isinstance(found, Comparison)
    same = mlxlab.compare(trace, "prefix@none,paged", simulate=True, progress=False)
    assert found.summary().equals(same.summary())
    assert capsys.readouterr().out.startswith("No seconds: mlxlab calibrate")


def test_magics_return_traces_and_write_files(shell: Any, trace: Path) -> None:
    assert isinstance(shell.run_line_magic("read_trace", "sessions"), Trace)
    out = trace.with_name("hashes.jsonl")
    shell.run_line_magic("export_trace", f"{trace} --out ~/{out.name}")
    assert out.exists()
    assert len(mlxlab.read_trace(out)) == len(small_trace().inference)


def test_options_print_after_the_result(
    shell: Any, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trace.with_name("out.json")
    line = f"{trace} --by-request --json {out} --plots {trace.parent / 'plots'}"
    found = shell.run_line_magic("misses", line)
    assert isinstance(found, Misses)
    said = capsys.readouterr().out
    assert all(row in said for row in found.request_lines())
    assert f"Written: {out}, " in said
    assert json.loads(out.read_text())["kind"] == "misses"


def test_variables_stand_in_a_line(shell: Any, trace: Path) -> None:
    shell.user_ns.update(mine=trace, block=16)
    found = shell.run_cell("r = %misses $mine --strategy paged:block={block}\nr")
    assert found.result.strategy == "paged:block=16"


def test_a_trace_that_is_not_named_is_noted(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("misses", "")
    assert "bundled trace sessions" in capsys.readouterr().out


def test_lists_are_printed(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("strategies", "")
    shell.run_line_magic("rules", "")
    said = capsys.readouterr().out
    assert "segmented-naive" in said
    assert "plain-content" in said


@pytest.mark.parametrize(
    ("verb", "line", "message"),
    [
        ("compare", "nope", "%compare: no trace 'nope'"),
        ("compare", "--nope", "%compare: No such option: --nope"),
        ("compare", "--chunk 0", "%compare: Invalid value for '--chunk'"),
        ("misses", "--strategy pagd", "did you mean 'paged'?"),
        ("tune", "--memory 16", "--memory '16': give a size with its unit"),
        ("export_trace", "sessions", "Missing option '--out'"),
        ("compare", "'a", "No closing quotation: 'a"),
    ],
)
def test_bad_input_is_one_line(shell: Any, verb: str, line: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        shell.run_line_magic(verb, line)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("verb", NAMES)
def test_help_explains(
    shell: Any, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell(f"%{verb}?")
    said = capsys.readouterr().out
    assert f"Usage: %{verb} [OPTIONS]" in said
    assert "--help" not in said
    assert all(len(line) <= 88 for line in said.splitlines() if "File:" not in line)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%compare sess", ["sessions"]),
        ("%compare --strat", ["--strategies"]),
        ("r = %compare sessions --strategies prefix@none,pag", ["paged"]),
        ("%compare --strategies=pag", ["paged"]),
        ("%misses --strategy paged:bl", ["block="]),
        ("%tune --rules -dro", ["-drop-attribution"]),
        ("%import_trace --format claude-c", ["claude-code"]),
        ("%serve --strategy seg", ["segmented", "segmented-naive"]),
        ("%serve --sta", ["--status"]),
        ("%serve --no-r", ["--no-record"]),
        ("import os\n%misses resu", ["resume"]),
    ],
)
def test_lines_are_completed(shell: Any, line: str, found: list[str]) -> None:
    assert completed(shell, line) == found


def test_other_code_is_completed_as_before(shell: Any) -> None:
    shell.user_ns["sessions_of_mine"] = 1
    assert "sessions_of_mine" in completed(shell, "compare(sess")


def test_after_unloading_there_is_no_magic(shell: Any) -> None:
    shell.run_line_magic("unload_ext", "mlxlab")
    magics = shell.magics_manager.magics["line"]
    assert not {*NAMES, "serve"} & magics.keys()
    assert completed(shell, "%compare sess") != ["sessions"]
    shell.run_line_magic("load_ext", "mlxlab")
    assert completed(shell, "%compare sess") == ["sessions"]


def test_reloading_completes_once(shell: Any) -> None:
    shell.run_line_magic("reload_ext", "mlxlab")
    assert completed(shell, "%compare sess") == ["sessions"]
    assert len(shell.strdispatchers["complete_command"].regexs) == 1


def test_a_magic_that_calibrates_is_used_by_the_next(
    shell: Any, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trace.parent))
    made = shell.run_line_magic("calibrate", "--tokens 300 --seconds 0")
    assert isinstance(made.costs, CostModel)
    found = shell.run_line_magic("compare", f"{trace} --simulate --strategies paged")
    assert "ttft_median_s" in found.summary()
