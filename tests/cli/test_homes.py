"""Commands without a home folder: only those that keep something need one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOMES = {
    "unset": {},
    "empty": {"HOME": "", "XDG_CACHE_HOME": ""},
    "relative": {"HOME": "somewhere", "XDG_CACHE_HOME": "somewhere"},
}


def run(
    home: dict[str, str], folder: Path, line: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"HOME", "XDG_CACHE_HOME"}}
    return subprocess.run(
        [sys.executable, "-m", "mlxlab", *line.split()],
        env=kept | home,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("line", "home"),
    [
        ("compare resume --simulate --strategies paged,suffix", "unset"),
        ("tune resume --memory 1GiB --trials 2", "empty"),
        ("misses resume", "relative"),
    ],
)
def test_a_simulation_needs_no_home(line: str, home: str, tmp_path: Path) -> None:
    done = run(HOMES[home], tmp_path, line)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    ["claude", "agents --write . --aliases ~/a.json", "import-trace --out a.jsonl"],
)
def test_a_home_may_not_be_known(line: str, tmp_path: Path) -> None:
    done = run({"HOME": "~"}, tmp_path, line)
    assert done.returncode == 2
    assert done.stderr.startswith("mlxlab: ~/")
    assert done.stderr.endswith("no home folder is known; set HOME\n")


@pytest.mark.parametrize("looping", ["HOME", "XDG_CACHE_HOME"])
def test_plots_need_no_cache(looping: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    home = {"HOME": str(tmp_path), looping: str(tmp_path / "loop")}
    done = run(home, tmp_path, "misses tasks --plots plots")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("mlxlab: plots: Symlink loop")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["calibrate", "claude"])
def test_what_needs_a_home_says_so(line: str, tmp_path: Path) -> None:
    done = run({}, tmp_path, line)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mlxlab: ")
    assert "HOME" in last or "no endpoint" in last
    assert "Traceback" not in done.stderr
