"""Places for the real client to work in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from data.record import CACHE, install
from tests.support.claude import Workplace

#: The last one known to keep neither system text nor tools in its history.
OLDER = "2.1.197"

CALC = """\
def add(a, b):
    return a - b


print(add(2, 3))
"""


@pytest.fixture(scope="session")
def older_client() -> Path:
    """An older Claude Code from npm."""
    folder = CACHE.with_name(f"client-{OLDER}")
    installed = folder / "node_modules/.bin/claude"
    if installed.exists():
        return installed
    try:
        return install(OLDER, folder)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm cannot install Claude Code {OLDER}: {error}")


@pytest.fixture
def workplace(
    client: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Workplace:
    """A project with a fault, in a home where endpoints are published too."""
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    (project / "calc.py").write_text(CALC)
    (project / "notes.txt").write_text("Hello.\n")
    monkeypatch.setenv("HOME", str(home))
    return Workplace(client, home, project)
