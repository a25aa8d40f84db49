"""Cases of folders: traces among things that are none, and commands that open them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.hostile.cases.command import Commands
from tests.hostile.cases.documents import documents
from tests.hostile.cases.files import write_document
from tests.support.odd_files import make_socket

__all__ = ["ODD", "mix_folder"]


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 << 20)


def _nest(path: Path) -> None:
    for _ in range(40):
        path = path / "d"
    path.mkdir(parents=True)


def _shut(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0)


#: What a path may be, other than a file of the format that is expected there.
ODD: tuple[Callable[[Path], object], ...] = (
    os.mkfifo,
    make_socket,
    _loop,
    _sparse,
    _nest,
    _shut,
    Path.mkdir,
    Path.touch,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to("/dev/full"),
    lambda path: path.symlink_to("/proc/self/mem"),
    lambda path: path.symlink_to("/proc/self/fd"),
    lambda path: path.symlink_to("nothing"),
    lambda path: path.symlink_to(".."),
    lambda path: path.write_bytes(b"\n"),
    lambda path: path.write_bytes(b"{}"),
    lambda path: path.write_bytes(b"[]\n[]\n"),
    lambda path: path.write_bytes(b"\0" * 5000),
    lambda path: path.write_text("notes\n"),
)
_NAMES = (
    *("a.jsonl", "b.jsonl.gz", "c.json", "d.json.gz", "README.md", "e.request.json"),
    *("p/s.jsonl", "index.jsonl", "f.response.json", ".jsonl", "x/.json.gz", "-.jsonl"),
)
_COMMANDS = (
    *("misses {}", "sweep {} --scheduler here --strategies paged", "read-trace {}"),
    *("misses {} --users 2", "compare {} --simulate --strategies paged"),
    *("import-trace {} --out new.jsonl", "anonymize {} --out new.jsonl"),
    *("import-trace {} --out new.jsonl --format claude-code --project p",),
    *("import-trace {} --out new.jsonl --format telemetry", "agents --write {}"),
    *("import-trace {} --out new.jsonl --format claude-trace",),
    *("agents --write . --aliases {}", "record --out new.jsonl --script {}"),
    *("export-trace {} --out new.jsonl", "misses {} --json -", "doctor {}"),
    *("audit {}", "plan {} --most 2", "evictions {} --users 2"),
)


def mix_folder(chance: Random, folder: Path) -> Commands:
    """Valid, broken and odd files in one folder; the command may name one of them."""
    inner = folder / "mix"
    inner.mkdir()
    kinds = sorted(set(documents()) - {"script", "aliases"})
    for _ in range(chance.randrange(3)):
        form = chance.choice(kinds)
        write_document(documents()[form], inner, chance, chance.choice((0, 0, 1)))
    for name in chance.sample(_NAMES, chance.randrange(4)):
        path = inner / name
        if not os.path.lexists(path):
            path.parent.mkdir(exist_ok=True)
            chance.choice(ODD)(path)
    found = sorted(path.name for path in inner.iterdir())
    given = ["mix", *(f"mix/{name}" for name in found)]
    words = chance.choice(_COMMANDS).split()
    named = chance.choice(("mix", chance.choice(given)))
    return Commands((tuple(word.format(named) for word in words),))
