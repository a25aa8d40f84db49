"""Files that are no files, and small files that unpack to large ones."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxlab.errors import MlxlabError
from mlxlab.models import tiny
from mlxlab.models.folder import find_model
from mlxlab.server.aliases import Aliases
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.importers import import_trace
from mlxlab.traces.open import open_traces, read_trace
from mlxlab.traces.recording.script import read_script
from tests.support.odd_files import make_socket

pytestmark = pytest.mark.usefixtures("half_a_minute")


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}
READERS: dict[str, Callable[[Path], object]] = {
    "trace": read_trace,
    "opened": open_traces,
    "alias file": Aliases.load,
    "script": read_script,
    "import": lambda path: import_trace(path, format="capture"),
    "model": lambda path: find_model(str(path)),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_only_regular_files_are_read(
    read: Callable[[Path], object], make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "odd.jsonl"
    make(path)
    with pytest.raises(MlxlabError) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    assert "odd.jsonl" in str(refused.value)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_folder_of_traces_may_hold_anything(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "odd.jsonl")
    with pytest.raises(MlxlabError, match=r"odd\.jsonl"):
        open_traces(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"],
)
def test_a_model_folder_holds_regular_files(
    kind: str, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.PATH, folder, ignore=shutil.ignore_patterns("*.py", "__*"))
    (folder / name).unlink(missing_ok=True)
    KINDS[kind](folder / name)
    with pytest.raises(MlxlabError, match=f"{name} is not a regular file"):
        find_model(str(folder))


def bomb(path: Path, begin: bytes, mebibytes: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        for _ in range(mebibytes):
            file.write(b" " * 2**20)
    return path


WEKA = b'{"block_size":64,"requests":['
MOONCAKE = b'{"timestamp":0,"input_length":512,"hash_ids":[0]}\n'
HASHED = b'{"kind":"hashed","unit":64}\n'


@pytest.mark.parametrize(
    ("name", "begin"),
    [("a.json.gz", WEKA), ("a.jsonl.gz", MOONCAKE), ("a.jsonl.gz", HASHED)],
    ids=["weka", "mooncake", "hashed"],
)
def test_a_long_line_is_not_unpacked(name: str, begin: bytes, tmp_path: Path) -> None:
    path = bomb(tmp_path / name, begin, 120)
    assert path.stat().st_size < 2**20
    with pytest.raises(MlxlabError, match=f"{name}.* more than 100,000,000 bytes"):
        list(_hashed(path))


def test_many_lines_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxlab.content.UNPACKED_BYTES", 10_000_000)
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(MOONCAKE * 300_000)
    with pytest.raises(MlxlabError, match="unpacks to more than 10,000,000 bytes"):
        list(_hashed(path))


def test_runs_are_not_expanded_without_limit(tmp_path: Path) -> None:
    hashes = {"kind": "chained", "hashes": [f"{i:016x}" for i in range(2000)]}
    request = {
        "kind": "request",
        "t": 0.0,
        "session": "s",
        "tokens": 64,
        "chained": [[0, 2000]] * 100_000,
    }
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(line).encode() + b"\n" for line in (hashes, request)]
    path.write_bytes(HASHED + b"".join(lines))
    with pytest.raises(MlxlabError, match="more than 4,194,304 hashes"):
        list(_hashed(path))


def _hashed(path: Path) -> HashedTrace:
    trace = read_trace(path)
    assert isinstance(trace, HashedTrace)
    return trace
