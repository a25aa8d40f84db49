"""Results go to where a user has named: files, links, pipes and devices."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from select import select
from threading import Thread
from typing import IO

import numpy as np
import pytest

from mlxlab.analysis.plots.picture import Picture
from mlxlab.errors import MlxlabError, ServerError
from mlxlab.files import (
    is_writable,
    locked,
    replaced,
    replaced_folder,
    write_json,
    written,
)
from mlxlab.traces import write_trace
from mlxlab.traces.hashed.file import Hasher, write_hashed
from mlxlab.traces.recording.recorder import recording
from mlxlab.traces.writer import TraceWriter
from mlxlab.unfinished import scratch_folder
from tests.support.exchanges import small_trace
from tests.support.odd_files import make_socket


def _hashed(path: Path) -> None:
    hasher = Hasher(64, b"salt")
    tokens = np.arange(200, dtype=np.int32)
    write_hashed(
        path, hasher, [hasher.request(0.0, tokens, tokens[:0], [], session="1")], {}
    )


def _recorded(path: Path) -> None:
    with TraceWriter(path):
        pass


WRITERS: dict[str, Callable[[Path], object]] = {
    "trace": lambda path: write_trace(small_trace(), path),
    "hashed": _hashed,
    "json": lambda path: write_json({"written": True}, path),
    "plot": lambda path: Picture().save(path),
    "recording": _recorded,
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
BEFORE = b"what was there before\n"


pytestmark = pytest.mark.usefixtures("half_a_minute")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.svg"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(write: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(MlxlabError) as error:
        write(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@every_writer
def test_a_pipe_gets_what_a_file_would_hold(
    write: Callable[[Path], object], path: Path
) -> None:
    os.mkfifo(path)
    got: list[bytes] = []
    reader = Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    while not got:  # until the reader has opened it
        try:
            write(path)
        except MlxlabError as error:
            assert "no process reads this pipe" in str(error)  # noqa: PT017
        else:
            reader.join(10)
    assert stat.S_ISFIFO(path.stat().st_mode)
    whole = path.with_name("whole.svg")
    write(whole)
    assert len(got[0]) == whole.stat().st_size > 0


@every_writer
def test_a_pipe_without_a_reader_is_refused(
    write: Callable[[Path], object], path: Path
) -> None:
    os.mkfifo(path)
    assert "no process reads this pipe" in refused(write, path)
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_that_leaves_is_one_line(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def leave() -> None:
        select([reader], [], [])
        os.close(reader)

    def write(path: Path) -> None:
        leaving.start()
        write_json({"more than it holds": "x" * 2**20}, path)

    leaving = Thread(target=leave)
    assert "Broken pipe" in refused(write, path)
    leaving.join()


@every_writer
def test_a_device_stays_a_device(write: Callable[[Path], object], path: Path) -> None:
    path.symlink_to("/dev/null")
    write(path)
    assert path.is_symlink()
    assert Path("/dev/null").is_char_device()
    assert list(path.parent.iterdir()) == [path]


def test_a_device_in_a_folder_stays(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        path.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"no device can be made or used here: {error}")
    write_json({}, path)
    assert path.is_char_device()


_PRINTS = """
import sys
import tempfile
from pathlib import Path
from mlxlab.files import write_json
print("before", flush=True)
write_json({"written": True}, Path(sys.argv[1]))
print("after")
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "itself"])
@pytest.mark.parametrize("to", ["file", "pipe"])
def test_the_own_output_is_written_to_in_turn(name: str, to: str, path: Path) -> None:
    if name == "itself":
        if to == "pipe":
            pytest.skip("a pipe of a shell has no name")
        name = str(path)
    command = [sys.executable, "-c", _PRINTS, name]
    if to == "pipe":
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    else:
        with path.open("wb") as out:
            subprocess.run(command, stdout=out, check=True)
        done = path.read_bytes()
    assert done.split() == [b"before", b"{", b'"written":', b"true", b"}", b"after"]


@every_writer
def test_a_link_stays_and_its_target_is_replaced(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    (first := tmp_path / "first").symlink_to("target")
    (link := tmp_path / "second.svg").symlink_to(first)
    write(link)  # a name that leads nowhere yet
    assert link.is_symlink()
    assert first.is_symlink()
    assert target.read_bytes()
    assert mode(target) == 0o600
    if write is _recorded:
        assert "exists" in refused(write, link)
        return
    target.write_bytes(BEFORE)
    write(link)
    assert (link.is_symlink(), first.is_symlink()) == (True, True)
    assert target.read_bytes() != BEFORE


@every_writer
def test_a_replaced_file_keeps_its_mode(
    write: Callable[[Path], object], path: Path
) -> None:
    if write is _recorded:
        pytest.skip("a recording replaces nothing")
    path.write_bytes(BEFORE)
    path.chmod(0o664)
    write(path)
    assert (mode(path), path.read_bytes() != BEFORE) == (0o664, True)


def test_a_replaced_file_keeps_its_owner(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give files away")
    path.write_bytes(BEFORE)
    os.chown(path, 1234, 1235)
    if not os.access(path, os.W_OK):
        pytest.skip("root may not write everything here")
    write_json({}, path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)


def test_a_protected_file_stays(path: Path) -> None:
    path.write_bytes(BEFORE)
    path.chmod(0o400)
    if os.access(path, os.W_OK):
        pytest.skip("root may write everything")
    assert "Permission denied" in refused(lambda path: write_json({}, path), path)
    assert not is_writable(path)
    assert path.read_bytes() == BEFORE


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(BEFORE)


ODD: dict[str, Callable[[Path], None]] = {
    "folder": Path.mkdir,
    "socket": make_socket,
    "circle": _circle,
    "below a file": _below_a_file,
}


@every_writer
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_what_is_no_file_is_refused(
    write: Callable[[Path], object], make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "folder/out.svg"
    path.parent.mkdir()
    make(path)
    status = path.parent.lstat() if path.parent.is_file() else path.lstat()
    refused(write, path)
    assert not is_writable(path)
    assert (
        status.st_ino == (path if path.parent.is_dir() else path.parent).lstat().st_ino
    )


def test_what_can_be_written_is_seen_before_any_work(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(BEFORE)
    (tmp_path / "link").symlink_to("new")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link", "pipe", "new", "new/folder/new"):
        assert is_writable(tmp_path / name)
    assert is_writable(Path("/dev/null"))
    assert not is_writable(tmp_path)
    assert not is_writable(file / "below")
    assert file.read_bytes() == BEFORE


def test_a_recorder_that_cannot_start_removes_only_its_own_file(tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to("/dev/null")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for out in (link, tmp_path / "new"):
            with (
                pytest.raises(ServerError),
                recording(out, upstream="http://127.0.0.1:1", port=port),
            ):
                raise AssertionError("started")
    assert list(tmp_path.iterdir()) == [link]


def leave(folder: Path) -> Path:
    """Leave an unfinished file, as a killed process does; return it."""
    (folder / ".mlxlab-keep.part").write_bytes(BEFORE)  # not such a name
    with replaced(folder / "old") as file:
        file.write(BEFORE)
        (left,) = (p for p in folder.iterdir() if len(p.name) == 21)
        shutil.copy2(left, kept := left.with_name(".mlxlab-k1ll3d__.part"))
    (folder / "old").unlink()
    return kept


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    file = leave(tmp_path)
    (folder := tmp_path / ".mlxlab-f0lder__.part").mkdir()
    (folder / "weights").write_bytes(BEFORE)
    with written(tmp_path / "new") as out:
        assert not file.exists()
        assert not folder.exists()
        out.write(b"new")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"new", ".mlxlab-keep.part"}


def test_what_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    with (
        replaced(tmp_path / "a") as first,
        replaced_folder(tmp_path / "b") as folder,
        replaced(tmp_path / "a") as second,
    ):
        first.write(b"first")
        second.write(b"second")
        (folder / "inside").write_bytes(BEFORE)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert (tmp_path / "b/inside").read_bytes() == BEFORE
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_a_writer_whose_new_file_was_taken_for_a_leftover_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    taken: list[Path] = []

    def late(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not taken:
            taken.extend(tmp_path.glob(".mlxlab-*.part"))
            taken[0].unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write_json({"written": True}, tmp_path / "a")
    assert len(taken) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_error_leaves_what_was_there(path: Path) -> None:
    path.write_bytes(BEFORE)

    def fail(opened: Callable[[Path], AbstractContextManager[IO[bytes]]]) -> None:
        with opened(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    for opened in (written, replaced):
        with pytest.raises(ZeroDivisionError):
            fail(opened)
    assert path.read_bytes() == BEFORE
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_locked_for_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        thread = Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_scratch_folder_goes_with_its_block_or_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (left := tmp_path / ".mlxlab-k1ll3d__.part").mkdir()
    with scratch_folder() as folder, scratch_folder() as other:
        (folder / "inside").write_bytes(BEFORE)
        assert {*tmp_path.iterdir()} == {folder, other}
        assert mode(folder) == 0o700
    assert not left.exists()
    assert list(tmp_path.iterdir()) == []
