"""The command line: what it prints, and how it refuses."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest

from mlxlab.analysis.result import read_result
from mlxlab.models.folder import find_model
from mlxlab.rendering.rules import RULES
from mlxlab.strategies import STRATEGIES
from mlxlab.strategies.placements import PLACEMENTS
from mlxlab.traces import load_trace, write_trace
from tests.support import wire
from tests.support.endpoint import copy_tiny
from tests.support.exchanges import small_trace
from tests.support.histories import SessionLog

COMMAND = [sys.executable, "-c", "from mlxlab.cli import main; main()"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl"
    write_trace(small_trace(), path)
    return path


def test_compare_prints_a_table_and_writes_what_was_asked(
    trace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    done = run(
        "compare", trace, "--simulate", "--json", out, "--plots", tmp_path / "plots"
    )
    assert done.returncode == 0, done.stderr
    exact = [name for name, strategy in STRATEGIES.items() if strategy.exact]
    assert all(name in done.stdout for name in [*exact, "exact, unlimited memory"])
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    assert json.loads(out.read_text())["requests"]
    assert (tmp_path / "plots" / "hit_rate.svg").exists()
    assert "each trace has its own cache" in " ".join(done.stdout.split())
    assert "Best: " in done.stdout
    assert "This takes" not in done.stdout + done.stderr
    said = "".join(done.stdout.split())
    written = [out, *(tmp_path / "plots").iterdir()]
    assert len(written) >= 4
    assert all(str(path) in said.rpartition("Written:")[2] for path in written)


def test_a_live_comparison_says_first_how_long_it_takes(trace: Path) -> None:
    done = run("compare", trace, "--strategies", "prefix,paged")
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert re.match(r"This takes about \d+(\.\d+)? (s|min|h), by a few prompts;", first)
    assert "median time to first token" in " ".join(done.stdout.split())
    assert "Written:" not in done.stdout


def test_tune_says_whether_traces_share_a_cache(trace: Path) -> None:
    options = ["--trials", "1", "--memory", "1MiB"]
    done = run("tune", trace, *options)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "all traces share one cache, one after the other" in said
    several = run("tune", trace, *options, "--users", "3").stdout
    assert "all traces share one cache, 3 at a time" in " ".join(several.split())


def test_fidelity_prints_a_table_and_writes_what_was_asked(
    trace: Path, tmp_path: Path, measured: Path
) -> None:
    out, plots = tmp_path / "out.json", tmp_path / "plots"
    few = ["--strategies", "paged,suffix-naive", "--quantized", "4", "--tokens", "2"]
    options = [*few, "--edits", "date", "--by-edit"]
    done = run("fidelity", trace, *options, "--json", out, "--plots", plots)
    assert done.returncode == 0, done.stderr
    shown = ["noise floor", "4-bit weights", "paged", "suffix-naive", "edit "]
    assert all(name in done.stdout for name in shown)
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "…" not in done.stdout
    assert json.loads(out.read_text())["requests"]
    assert (plots / "pareto.svg").exists()
    assert [path.stem for path in measured.iterdir()] == [find_model().digest]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strategies", "nope"], "no strategy 'nope'"),
        (["--edits", "nope"], "no edit 'nope'; choose from header, date"),
        (["--quantized", "7"], "quantized '7': give none"),
        (["--quantized", "x"], "quantized 'x': give none"),
        (["--tokens", "0"], "tokens"),
    ],
)
def test_fidelity_refuses_bad_options(
    options: list[str], says: str, trace: Path
) -> None:
    done = run("fidelity", trace, *options)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_verbose_logs_hits_and_misses(trace: Path) -> None:
    done = run("-v", "compare", trace, "--simulate", "--strategies", "prefix")
    assert "Cache HIT: reusing" in done.stderr
    assert "Cache MISS" in done.stderr


def test_lists_strategies_and_rules() -> None:
    listed: dict[str, Iterable[str]] = {
        "strategies": STRATEGIES,
        "rules": RULES,
        "placements": PLACEMENTS,
    }
    for command, names in listed.items():
        printed = run(command).stdout
        assert all(name in printed for name in names)


NEWER = '{"kind": "trace", "version": 99, "recorder": "x", "created": "y"}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (NEWER, ":1: version 99"),
        ("", "empty"),
        ("{}\n", ":1: "),
        ("\0\1\2\n" * 3, ":1: "),
        ("[" * 100_000 + "\n", ":1: "),
    ],
)
def test_a_bad_trace_is_one_line_and_exit_code_2(
    content: str, says: str, tmp_path: Path
) -> None:
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out.json"
    bad.write_text(content)
    done = run("compare", bad, "--simulate", "--json", out)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strategies", "nope"], "no strategy 'nope'; choose from none, prefix"),
        (["--rules", "nope"], "unknown rule 'nope'; known: all, none"),
        (["--model", "nope"], "unknown model 'nope'"),
        (["--model", "/"], "config.json cannot be read"),
        (["--chunk", "0"], "chunk"),
        (
            ["--capacity", "1GB"],
            "--capacity '1GB': give a size with its unit, such as 16GiB",
        ),
    ],
)
def test_a_bad_option_is_exit_code_2(
    options: list[str], says: str, trace: Path
) -> None:
    done = run("compare", trace, "--simulate", *options)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_unknown_trace_lists_the_recorded_ones() -> None:
    done = run("compare", "nope")
    assert done.returncode == 2
    assert "no trace 'nope'" in done.stderr


def test_imports_a_capture(tmp_path: Path) -> None:
    exchange = small_trace().exchanges[0]
    line = {
        "t": exchange.t,
        "method": "POST",
        "path": exchange.path,
        "headers": {"X-Api-Key": "sk-secret"},
        "body": exchange.body,
    }
    capture, out = tmp_path / "capture.jsonl", tmp_path / "trace.jsonl"
    capture.write_text(json.dumps(line) + "\n")
    done = run("import-trace", capture, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "sk-secret" not in out.read_text()
    assert run("compare", out, "--simulate").returncode == 0


def test_imports_a_history_and_says_what_it_left_out(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "projects/-me-app/s.jsonl")
    log.say("user", "Why does the sum fail?")
    log.answer("a1", {"type": "text", "text": "It subtracts."})
    log.raw(b"broken\n")
    out = tmp_path / "trace.jsonl"
    options = ["--since", "2020-01-01", "--project", "app", "--limit", "5"]
    done = run("import-trace", tmp_path / "projects", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "line that is not a JSON object skipped (1 times)" in said
    assert "request rebuilt from the conversation, without system and tools" in said
    assert "s.jsonl:3" in "".join(done.stderr.split())
    compared = run("compare", out, "--simulate", "--strategies", "prefix")
    assert compared.returncode == 0, compared.stderr
    assert "not a JSON object skipped" in compared.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "x"], "no format 'x'; choose from auto, capture, claude-code"),
        (["--since", "soon"], "'soon': not a date"),
        (["--limit", "0"], "limit"),
        ([], "no request of format claude-code found"),
    ],
)
def test_import_refuses_what_it_cannot_do(
    options: list[str], says: str, tmp_path: Path
) -> None:
    SessionLog(tmp_path / "s.jsonl").record("mode")
    done = run("import-trace", tmp_path, "--out", tmp_path / "out.jsonl", *options)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_anonymizes_a_trace(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "anonymous.jsonl"
    assert run("anonymize", trace, "--out", out).returncode == 0
    assert "Why does the sum fail" in trace.read_text()
    assert "Why does the sum fail" not in out.read_text()
    assert out.stat().st_mode & 0o777 == 0o600


def test_records_until_it_is_interrupted(tmp_path: Path) -> None:
    script, out = tmp_path / "script.json", tmp_path / "out.jsonl"
    script.write_text(
        '{"conversations": [], "otherwise": [{"type": "text", "text": "x"}]}'
    )
    command = [*COMMAND, "record", "--out", str(out), "--script", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as recorder:
        assert recorder.stdout is not None
        url = recorder.stdout.readline().strip().rpartition("=")[2]
        answer = httpx.post(f"{url}/v1/messages", json=wire.first_body(), timeout=20)
        recorder.send_signal(signal.SIGINT)
    assert answer.status_code == 200
    assert recorder.returncode == 0
    assert len(load_trace(out).inference) == 1


def test_serve_prints_what_was_measured(tmp_path: Path) -> None:
    brackets = copy_tiny(tmp_path / "a [red] model")
    aliases = tmp_path / "aliases.json"
    aliases.write_text(
        json.dumps({"aliases": {"other": {"model": brackets, "strategy": "segmented"}}})
    )
    options = ["--port", "0", "--strategy", "suffix:run=77", "--aliases", str(aliases)]
    command = [*COMMAND, "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        shown = [server.stdout.readline().rstrip() for _ in range(7)]
        server.send_signal(signal.SIGINT)
        server.communicate()
    assert shown[0].startswith("Server(tiny, suffix:run=77) at http://127.0.0.1:")
    assert shown[1].startswith("suffix:run=77 on tiny is approximate")
    assert shown[2].startswith("Nothing was measured for it")
    assert shown[3] == "mlxlab fidelity TRACE --model tiny --strategies suffix:run=77"
    assert shown[6].endswith(f"--model '{brackets}' --strategies segmented")
    assert server.returncode == 0


@pytest.mark.parametrize(
    "options", [[], ["--script", "nope"], ["--upstream", "nope"]], ids=str
)
def test_record_refuses_what_it_cannot_answer_from(
    options: list[str], tmp_path: Path
) -> None:
    done = run("record", "--out", tmp_path / "out.jsonl", *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_partial_last_line_is_skipped_and_said(trace: Path) -> None:
    trace.write_bytes(trace.read_bytes()[:-20])
    done = run("compare", trace, "--simulate")
    assert done.returncode == 0
    assert "small: partial last line skipped (1 times)" in done.stdout


@pytest.mark.slow
def test_a_calibration_with_fewer_points_does_not_replace_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ("calibrate", "--tokens", "300", "--seconds", "0")
    assert run(*command).returncode == 0
    (path,) = (tmp_path / "mlxlab/calibration").iterdir()
    content = json.loads(path.read_text())
    content["calibrations"][0]["points"] *= 2
    path.write_text(json.dumps(content))
    done = run(*command)
    says = "calibration not kept: it has 8 points, that of"
    assert says in " ".join(done.stderr.split())
    assert "16 and stays; force replaces it (--force)" in " ".join(done.stderr.split())
    assert json.loads(path.read_text()) == content
    done = run(*command, "--force")
    assert done.returncode == 0
    assert says not in " ".join(done.stderr.split())
    assert len(json.loads(path.read_text())["calibrations"][0]["points"]) == 8


VERBS_WITH_RESULTS = {
    "compare": ["--simulate", "--strategies", "paged"],
    "misses": [],
    "sweep": ["--strategies", "paged", "--scheduler", "here"],
    "tune": ["--trials", "1"],
    "plan": ["--most", "2"],
    "evictions": ["--policies", "residual", "--memory", "1MiB"],
    "calibrate": ["--tokens", "300", "--seconds", "0"],
    "fidelity": [
        *("--strategies", "paged", "--edits", "none", "--tokens", "2"),
        *("--quantized", "none"),
    ],
}


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(verb, marks=[pytest.mark.slow] if verb == "fidelity" else [])
        for verb in VERBS_WITH_RESULTS
    ],
)
def test_json_is_all_that_a_verb_prints_or_writes(
    verb: str, trace: Path, tmp_path: Path, measured: Path
) -> None:
    arguments = [*([] if verb == "calibrate" else [trace]), *VERBS_WITH_RESULTS[verb]]
    done = run(verb, *arguments, "--json", "-")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["kind"] == verb
    assert printed["requests"]
    file = tmp_path / "out.json"
    done = run(verb, *arguments, "--json", file)
    assert json.loads(file.read_text()).keys() == printed.keys()
    assert str(file) in "".join(done.stdout.split())
    assert read_result(file).kind == verb


def test_json_says_what_was_written(trace: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    count = len(small_trace().inference)
    for arguments, content in {
        ("anonymize", trace): {"trace": out, "requests": count, "skipped": {}},
        ("export-trace", trace): {"trace": out, "unit": 64},
        ("report", trace): {"report": out},
    }.items():
        done = run(*arguments, "--out", out, "--json", "-")
        assert json.loads(done.stdout) == content, done.stderr
    read = json.loads(run("read-trace", trace, "--json", "-").stdout)
    assert read == {"trace": "small", "requests": count}
    rules = json.loads(run("rules", "--json", "-").stdout)
    assert rules.keys() == RULES.keys()


def test_a_trace_that_is_not_named_is_noted() -> None:
    done = run("misses", "--json", "-")
    assert json.loads(done.stdout)["kind"] == "misses"
    assert done.stderr.splitlines() == [
        "No trace is named; this uses the bundled trace sessions."
    ]


def test_progress_is_quiet_in_a_pipe_unless_forced(trace: Path) -> None:
    options = ["misses", trace]
    assert run(*options).stderr == ""
    assert "paged" in run("--progress", *options).stderr


def test_fidelity_says_first_how_long_it_takes(trace: Path, measured: Path) -> None:
    few = ["--strategies", "paged", "--edits", "date", "--quantized", "none"]
    done = run("fidelity", trace, *few, "--tokens", "2")
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert re.match(r"This takes about \d+(\.\d+)? (s|min|h), by a few prompts;", first)


def test_misses_reads_an_imported_history(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "projects/-me-app/s.jsonl")
    log.say("user", "Why does the sum fail?")
    log.answer("a1", {"type": "text", "text": "It subtracts."})
    out = tmp_path / "mine.jsonl"
    done = run("import-trace", tmp_path / "projects", "--out", out, "--json", "-")
    assert json.loads(done.stdout)["requests"] == 1
    found = run("misses", out)
    assert found.returncode == 0, found.stderr
    assert "what would have saved them" in " ".join(found.stdout.split())
