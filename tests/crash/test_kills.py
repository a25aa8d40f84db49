"""kill -9 at any moment of every writer: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.writers import WRITERS, Writer

#: Longest time between two kills.
_LIFE_S = 0.06


@dataclass
class Count:
    """What kills have done."""

    kills: int = 0
    lost: int = 0
    leftovers: int = 0


class Killer:
    """Starts writers and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, name: str, start: int, folder: Path, seconds: float) -> list[int]:
        """Return what was written before the kill."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps([name, start, str(folder)])
        print(line, file=self._process.stdin, flush=True)
        pid = int(self._process.stdout.readline())
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        return [int(line) for line in iter(self._process.stdout.readline, "gone\n")]


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.writers"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Killer(process)


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writers change these; afterwards they are as before."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "")


def files(folder: Path) -> set[str]:
    """Return the names of all files and folders, but for numbered ones."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in names if not name[0].isdigit() or "/." in name}


def kill_often(killer: Killer, name: str, kills: int, folder: Path) -> Count:
    """Kill a writer at random moments, and look what is there each time."""
    writer, count, drawn = WRITERS[name], Count(), random.Random(f"{name}{kills}")
    once(writer, folder, 0)
    expected, kept, next_ = files(folder), writer.found(folder), 1
    for _ in range(kills):
        written = killer.run(name, next_, folder, drawn.uniform(0, _LIFE_S))
        found = writer.found(folder)
        count.kills += 1
        count.lost += not is_whole(writer, kept, written, found, next_)
        next_ = max([next_, *written, *found]) + 1
        once(writer, folder, next_)
        kept, next_ = writer.found(folder), next_ + 1
        there = files(folder)
        count.leftovers += len(there - expected)
        expected |= there
    return count


def once(writer: Writer, folder: Path, number: int) -> None:
    run = writer.run(folder, number)
    assert next(run) == number
    run.close()  # type: ignore[attr-defined]


def is_whole(
    writer: Writer, kept: set[int], written: list[int], found: set[int], start: int
) -> bool:
    """Whether all that was written is there, and nothing else but the next number."""
    last = written[-1] if written else start - 1
    if writer.adds:
        return kept | set(written) <= found <= kept | {*written, last + 1}
    return found in ({last + 1}, {written[-1]} if written else kept)


@pytest.mark.parametrize("name", ["trace", "calibration", "recording", "model folder"])
def test_a_writer_may_be_killed(killer: Killer, name: str, tmp_path: Path) -> None:
    assert kill_often(killer, name, 4, tmp_path) == Count(kills=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_may_be_killed_at_any_moment(
    killer: Killer, name: str, tmp_path: Path
) -> None:
    assert kill_often(killer, name, 20, tmp_path) == Count(kills=20)
