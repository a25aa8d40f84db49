"""Full disks and read-only folders: one line, and what was there stays whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxlab.errors import MlxlabError
from tests.support.writers import WRITERS

#: Writers that name the file in their error.
NAMED = [name for name in WRITERS if name not in ("layout", "model folder")]
every_writer = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "sweep"))
        for name in NAMED
    ],
)
#: Commands that write to the disk, and the file that was there before.
COMMANDS = {
    "anonymize resume --out DISK/out": "out",
    "export-trace resume --out DISK/out.jsonl.gz": "out.jsonl.gz",
    "compare resume --simulate --json DISK/out.json": "out.json",
    "compare resume --simulate --plots DISK": "hit_rate.svg",
    "sweep resume --scheduler here --json DISK/out.json.gz": "out.json.gz",
    "sweep resume --scheduler here --out DISK": "other",
    "report resume --out DISK/out.html": "out.html",
    "calibrate --seconds 0 --tokens 300": "other",
    "record --upstream http://127.0.0.1:1 --out DISK/new": "other",
    "serve --port 0 --record DISK/new": "other",
}


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writers change these; afterwards they are as before."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "")


@dataclass(frozen=True)
class Disk:
    """A small file system of its own."""

    folder: Path

    def fill(self, left: int = 0) -> None:
        """Leave room for this many bytes."""
        page = b"x" * 4096
        try:
            with (self.folder / "filling").open("wb", buffering=0) as file:
                while file.write(page) == len(page):
                    pass
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
        size = (self.folder / "filling").stat().st_size
        os.truncate(self.folder / "filling", max(size - left, 0))

    def empty(self) -> None:
        """Make room again."""
        (self.folder / "filling").unlink()

    def protect(self) -> None:
        """Make it read-only."""
        mount("-o", "remount,ro", str(self.folder))

    def content(self) -> dict[str, bytes]:
        """Return all other files."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {p.name: p.read_bytes() for p in files if p.name != "filling"}


def mount(*arguments: str) -> None:
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder))
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def refused(name: str, folder: Path, reason: str) -> None:
    """Try to write; expect one line."""
    with pytest.raises(MlxlabError) as error:
        next(WRITERS[name].run(folder, 2))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def wrote(name: str, folder: Path) -> None:
    """Write the first number; the file may be open again later."""
    run: Iterator[int] = WRITERS[name].run(folder, 1)
    assert next(run) == 1
    run.close()  # type: ignore[attr-defined]


@every_writer
@pytest.mark.parametrize(
    "left", [0, pytest.param(4096, marks=pytest.mark.slow)], ids=["full", "one page"]
)
def test_a_full_disk(name: str, left: int, disk: Disk) -> None:
    wrote(name, disk.folder)
    before = disk.content()
    disk.fill(left)
    if left and name in ("hashed trace", "calibration", "fidelity", "sweep"):
        pytest.skip("a page is enough for it")
    refused(name, disk.folder, "No space left on device")
    after = disk.content()
    if name == "recording":  # the new one stays, as far as it could be written
        after.pop("2.jsonl", b"")
    assert after == before
    disk.empty()
    assert 1 in WRITERS[name].found(disk.folder)


@every_writer
def test_a_read_only_folder(name: str, disk: Disk) -> None:
    wrote(name, disk.folder)
    before = disk.content()
    disk.protect()
    refused(name, disk.folder, "Read-only file system")
    assert disk.content() == before


@every_writer
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_error_at_the_last_moment(
    name: str, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (name, failing) == ("recording", "replace"):
        pytest.skip("a recording replaces nothing")
    wrote(name, tmp_path)
    before = Disk(tmp_path).content()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"fsync": (os, "fsync"), "replace": (Path, "replace")}[failing]
    monkeypatch.setattr(*target, fail)
    refused(name, tmp_path, "No space left on device")
    after = Disk(tmp_path).content()
    after.pop("2.jsonl", b"")
    assert after == before
    monkeypatch.undo()
    assert 1 in WRITERS[name].found(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 8192], ids=["full", "two pages"])
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_on_a_full_disk(line: str, left: int, disk: Disk) -> None:
    if left and line.startswith(("export-trace", "sweep", "record", "serve")):
        pytest.skip("two pages are enough for it, or for its beginning")
    (disk.folder / COMMANDS[line]).write_bytes(b"before")
    before = disk.content()
    disk.fill(left)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mlxlab",
            *line.replace("DISK", str(disk.folder)).split(),
        ],
        env={
            **os.environ,
            "HOME": str(disk.folder),
            "XDG_CACHE_HOME": str(disk.folder),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    after = disk.content()
    assert after[COMMANDS[line]] == before[COMMANDS[line]]
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done
    assert "No space left on device" in done.stderr.splitlines()[-1]
