"""A bad command line is one line on standard error, and exit code 2."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxlab.cli import main
from mlxlab.errors import OUT_OF_MEMORY

UNIT = "give a size with its unit, such as 16GiB"
LAYOUT = "give a known model, bytes a token such as 96KiB"


def fails(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line on standard error of a command that fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mlxlab", *line.split()])
        with pytest.raises(SystemExit) as end:
            main()
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out == ""
    notes = ("No trace is named;", "This takes ")
    (error,) = [own for own in said.err.splitlines() if not own.startswith(notes)]
    return error


@pytest.mark.parametrize(
    ("line", "says"),
    [
        # Sizes
        ("tune --memory 16", f"mlxlab: --memory '16': {UNIT}"),
        ("report --memory 16", f"mlxlab: --memory '16': {UNIT}"),
        ("serve --memory 16", f"mlxlab: --memory '16': {UNIT}"),
        ("serve --memory 0.5", f"mlxlab: --memory '0.5': {UNIT}"),
        ("compare --capacity 1GB", f"mlxlab: --capacity '1GB': {UNIT}"),
        ("misses --capacity 16", f"mlxlab: --capacity '16': {UNIT}"),
        ("misses --layout 96", f"mlxlab: --layout '96': {LAYOUT}"),
        ("misses --layout 96KiB+", f"mlxlab: --layout '96KiB+': {LAYOUT}"),
        ("misses --layout qwen3.5-27", "; did you mean 'Qwen3.5-27B'?"),
        ("sweep --capacities 1GiB,16", f"mlxlab: --capacities '1GiB,16': {UNIT}"),
        ("sweep --capacities 0GiB", f"mlxlab: --capacities '0GiB': {UNIT}"),
        # Names that are close to another one
        ("serve --warm sesions", "; did you mean 'sessions'?"),
        ("compre", "mlxlab: No such command 'compre'. Did you mean 'compare'"),
        ("import x --out y", "'import-trace'"),
        (
            "compare --strategy paged",
            "mlxlab compare: No such option: --strategy; did you mean --strategies?",
        ),
        ("compare sesions --simulate", "; did you mean 'sessions'?"),
        ("compare --simulate --strategies pagd", "; did you mean 'paged'?"),
        ("compare --simulate --strategies paged:blok=1", "; did you mean 'block'?"),
        (
            "compare --simulate --rules plain-contents",
            "; did you mean 'plain-content'?",
        ),
        ("import-trace x --out y --format captur", "; did you mean 'capture'?"),
        # Values
        ("compare --chunk 0", "mlxlab compare: Invalid value for '--chunk'"),
        ("compare --model nope", "mlxlab: unknown model 'nope'"),
        ("tune --seed -1", "mlxlab tune: Invalid value for '--seed'"),
        ("tune --kld nan", "mlxlab tune: Invalid value for '--kld'"),
        ("tune --memory 1KiB --trials 1", "mlxlab: paged: capacity=1024 holds no"),
        ("tune --trials 0", "mlxlab tune: Invalid value for '--trials'"),
        ("sweep --users x", "mlxlab: --users 'x': give whole numbers >= 1"),
        ("sweep --users 1,²", "mlxlab: --users '1,²': give whole numbers >= 1"),
        ("sweep --scheduler nope", "mlxlab: scheduler nope: "),
        ("calibrate --tokens 1", "1 tokens are too few to calibrate with"),
        ("calibrate --seconds nan", "mlxlab calibrate: Invalid value for '--seconds'"),
        ("fidelity --quantized 7", "mlxlab: quantized '7': give none"),
        ("fidelity --edits nope", "mlxlab: no edit 'nope'; choose from"),
        ("misses --text nope", "mlxlab: text 'nope': choose from"),
        ("read-trace nope", "mlxlab: no trace 'nope'"),
        ("anonymize", "mlxlab anonymize: Missing "),
        ("export-trace sessions", "mlxlab export-trace: Missing option '--out'"),
        ("record --out /nonexistent/x", "mlxlab: record: give either a script or"),
        ("serve --strategy nope", "mlxlab: no strategy 'nope'"),
        ("serve --port 99999", "mlxlab: "),
        ("fidelity --json /dev/null/x", "mlxlab: --json /dev/null/x: give a file in"),
        ("fidelity --json .", "mlxlab: --json .: give a file in"),
        ("report --out .", "mlxlab: --out .: give a file in"),
        ("anonymize resume --out x/y", "mlxlab: --out x/y: give a file in"),
        ("export-trace resume --out x/y", "mlxlab: --out x/y: give a file in"),
        ("import-trace x --out .", "mlxlab: --out .: give a file in"),
        ("sweep --out x", "mlxlab: --out x: give a folder in"),
        ("misses --plots x", "mlxlab: --plots x: give a folder in"),
        ("nope", "mlxlab: No such command 'nope'"),
        ("--nope", "mlxlab: No such option: --nope"),
    ],
)
def test_a_bad_line_is_one_line(
    line: str,
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("no trace")
    assert says in fails(line, capsys)
    assert not (tmp_path / "y").exists()


def test_no_memory_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(**options: object) -> int:
        raise MemoryError

    monkeypatch.setattr("mlxlab.cli.app", call)
    assert fails("compare", capsys) == f"mlxlab: {OUT_OF_MEMORY}"


def test_a_crash_says_where() -> None:
    program = """
import os, signal
import mlxlab.cli
def crash(**options):
    os.kill(os.getpid(), signal.SIGSEGV)
mlxlab.cli.app = crash
mlxlab.cli.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGSEGV
    assert ended.stderr.startswith("Fatal Python error: Segmentation fault")
    assert "in crash" in ended.stderr
