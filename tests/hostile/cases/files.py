"""Cases of broken files: one of any format, and a command that reads it."""

from __future__ import annotations

import copy
import gzip
import zlib
from pathlib import Path
from random import Random

from tests.hostile.cases.command import Commands
from tests.hostile.cases.documents import Document, documents, rehashed
from tests.hostile.cases.faults import break_bytes, break_value, encoded

__all__ = ["break_packed", "break_trace", "readers", "write_document"]

#: Commands for a trace, and how often one is tried; those that take seconds seldom.
_RECORDED: dict[tuple[str, ...], float] = {
    ("misses",): 4,
    ("misses", "--by-request", "--text", "full"): 3,
    ("misses", "--json", "-", "--strategy", "suffix"): 1,
    ("read-trace",): 2,
    ("compare", "--simulate", "--strategies", "paged,suffix"): 3,
    ("compare", "--simulate", "--strategies", "paged", "--json", "-"): 1,
    ("sweep", "--scheduler", "here", "--strategies", "paged", "--users", "1,2"): 1,
    ("export-trace", "--out", "hashes.jsonl.gz"): 2,
    ("anonymize", "--out", "other.jsonl"): 2,
    ("import-trace", "--out", "other.jsonl"): 1,
    ("audit",): 1,
    ("misses", "--fill"): 1,
    ("doctor",): 0.3,
    ("plan", "--most", "3"): 0.5,
    ("evictions", "--memory", "1MiB"): 0.5,
    ("misses", "--plots", "plots"): 0.2,
    ("report", "--strategies", "paged"): 0.2,
    ("tune", "--trials", "1"): 0.2,
}
_HASHED: dict[tuple[str, ...], float] = {
    ("misses",): 4,
    ("misses", "--by-request"): 2,
    ("misses", "--json", "-"): 1,
    ("read-trace",): 2,
    ("sweep", "--scheduler", "here", "--strategies", "paged", "--users", "1,2"): 3,
    ("import-trace", "--out", "other.jsonl"): 1,
    ("compare", "--simulate"): 1,
    ("audit",): 0.5,
    ("doctor",): 0.3,
    ("plan", "--most", "3"): 0.5,
    ("evictions", "--memory", "1MiB"): 0.5,
    ("misses", "--plots", "plots"): 0.2,
    ("tune", "--trials", "1"): 0.2,
}
_FOREIGN: dict[tuple[str, ...], float] = {
    (): 5,
    ("--since", "2025-10-09"): 1,
    ("--limit", "1"): 1,
    ("--json", "-"): 1,
}


def break_trace(chance: Random, folder: Path) -> Commands:
    """One file, or one folder of a foreign format, with up to three faults."""
    document = chance.choice(list(documents().values()))
    write_document(document, folder, chance, chance.choice((0, 1, 1, 1, 2, 3)))
    return readers(document, chance)


def break_packed(chance: Random, folder: Path) -> Commands:
    """One file that is packed, damaged, or packed in an odd way."""
    kinds = ("own", "hashed", "weka", "mooncake")
    document = documents()[chance.choice(kinds)]
    write_document(document, folder, chance, chance.choice((0, 0, 1)))
    path = folder / document.path
    data = _packed(path.read_bytes(), chance)
    path.unlink()
    name = path.name + chance.choice((".gz", ".gz", ".gz", "", ".GZ", ".gz.gz"))
    (folder / name).write_bytes(data)
    lines = readers(document, chance).lines
    renamed = tuple(
        tuple(name if word == document.path else word for word in line)
        for line in lines
    )
    return Commands(renamed)


def write_document(
    document: Document, folder: Path, chance: Random, faults: int
) -> None:
    """Write a document's files, with faults in their values or bytes."""
    files = copy.deepcopy(dict(document.files))
    bytewise = chance.random() < 0.3
    if not bytewise:
        for _ in range(faults):
            break_value(files[chance.choice(list(files))], chance)
    broken = {name: _encoded(lines) for name, lines in files.items()}
    if bytewise:
        for _ in range(faults):
            name = chance.choice(list(broken))
            broken[name] = break_bytes(broken[name], chance)
    for name, data in broken.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def readers(document: Document, chance: Random) -> Commands:
    """Return a command that reads a document."""
    path = document.path
    match document.format:
        case "own":
            return Commands((_with(path, _RECORDED, chance),))
        case "hashed" | "weka" | "mooncake":
            return Commands((_with(path, _HASHED, chance),))
        case "script":
            return Commands((("record", "--script", path, "--out", "new.jsonl"),))
        case "aliases":
            return Commands((("agents", "--write", ".", "--aliases", path),))
    form = chance.choice((("--format", document.format), ()))
    command = ("import-trace", path, "--out", "new.jsonl", *form)
    again = _with("new.jsonl", _RECORDED, chance)
    return Commands(((*command, *_chosen(_FOREIGN, chance)), again))


def _with(
    path: str, commands: dict[tuple[str, ...], float], chance: Random
) -> tuple[str, ...]:
    name, *options = _chosen(commands, chance)
    return (name, path, *options)


def _chosen(commands: dict[tuple[str, ...], float], chance: Random) -> tuple[str, ...]:
    (found,) = chance.choices(list(commands), list(commands.values()))
    return found


def _encoded(lines: list[object]) -> bytes:
    return rehashed(lines, b"".join(encoded(line) + b"\n" for line in lines))


def _packed(data: bytes, chance: Random) -> bytes:
    packed = gzip.compress(data, 1, mtime=0)
    match chance.randrange(10):
        case 0:
            return packed[: chance.randrange(len(packed))]
        case 1:
            return packed + packed
        case 2:
            return packed + b"\0" * 512
        case 3:
            return packed + chance.randbytes(20)
        case 4:
            return gzip.compress(packed, mtime=0)
        case 5:
            return zlib.compress(data)
        case 6:
            filler = chance.choice((b" ", b"[", b"0", b'"'))
            return gzip.compress(
                data + filler * (chance.randrange(1, 30) << 20), 1, mtime=0
            )
        case 7:
            return data
        case _:
            return break_bytes(packed, chance)
