"""What `make lab` runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(("user", "allowed"), [("0", True), ("1000", False)])
def test_lab_takes_arguments_and_works_as_root(
    user: str, allowed: bool, tmp_path: Path
) -> None:
    program = tmp_path / "id"
    program.write_text(f"#!/bin/sh\necho {user}\n")
    program.chmod(0o755)
    command = [
        "make",
        "--no-print-directory",
        "-n",
        "lab",
        "READY=",
        "ARGS=--no-browser --port 9999",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split()
    assert words[words.index("lab") :][:2] == ["lab", "notebooks"]
    assert words[-3:] == ["--no-browser", "--port", "9999"]
    assert ("--allow-root" in words) == allowed
