"""``mlxlab plan`` on a command line: refusals, and what is said without seconds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlxlab.cli import main
from tests.cli.test_errors import fails


@pytest.fixture(autouse=True)
def _uncalibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("resume --ttft 0", "--ttft '0': give seconds > 0, as in 5s or 200ms"),
        ("resume --ttft 5m", "--ttft '5m': give seconds > 0, as in 5s or 200ms"),
        ("resume --strategy pagd", "no strategy 'pagd'; choose from none, prefix"),
        ("resume --strategy paged:blok=2", "paged: no parameter 'blok'; accepted: "),
        ("resume --memory 1KiB", "paged: capacity=1024 holds no block; give at least"),
        ("resume --memory 0GiB", "--memory '0GiB': give a size with its unit"),
        ("absent.jsonl", "no trace 'absent.jsonl': no such file"),
        ("broken.jsonl", "broken.jsonl:1: not JSON"),
    ],
)
def test_a_bad_line_is_one_line(
    line: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.jsonl").write_text("no trace\n")
    assert fails(f"plan {line}", capsys).startswith(f"mlxlab: {says}")


def test_without_a_calibration_it_counts_and_names_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mlxlab", "plan", "resume", "--most", "2"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().out
    assert end.value.code in (None, 0)
    flat = " ".join(said.split())
    assert "Counts only" in flat
    assert "mlxlab calibrate --force --model tiny" in flat
    assert re.search(r"^ 2 +\d+\.\d%", said, re.MULTILINE)  # what two users reuse
    assert "TTFT" not in said
    assert "queue" not in said
