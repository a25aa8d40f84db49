"""Places for the real client to work in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.claude import Workplace

CALC = """\
def add(a, b):
    return a - b


print(add(2, 3))
"""


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
