"""The files that an import reads: found in folders, and read record by record.

Their content is not trusted: links may lead in circles, lines may be huge, damaged or
foreign. Whatever cannot be read is counted and logged.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from tqdm.auto import tqdm

from mlxlab.content import open_regular, read_whole
from mlxlab.errors import TraceError
from mlxlab.limits import LINE_BYTES, TRACE_SECONDS
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.schema import Json, decode
from mlxlab.traces.trace import PARTIAL_LINE

__all__ = [
    "Source",
    "bytes_bar",
    "find_sources",
    "peek",
    "read_document",
    "read_records",
]

_CHUNK = 1 << 20
_PEEKED_LINES = 50


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read.

    Attributes:
        size: in bytes.
        changed: time of the last change, Unix seconds.
    """

    path: Path
    size: int
    changed: float

    def __str__(self) -> str:
        return str(self.path)


def find_sources(path: Path, ending: str, tally: Tally) -> list[Source]:
    """Find the file at ``path``, or the files below it with an ending, by path.

    Links are followed, and each file is found once.

    Raises:
        TraceError: ``path`` itself cannot be read.
    """
    try:
        own = path.stat()
        if stat.S_ISREG(own.st_mode):
            return [_source(path, own)]
        next(path.iterdir(), None)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a file or folder") from None
    found = _Search(ending, tally).below(path)
    return sorted(found, key=lambda source: source.path)


def _source(path: Path, found: os.stat_result) -> Source:
    # A file may be dated before 1970, or later than any time of a trace.
    return Source(
        path, found.st_size, min(max(found.st_mtime, 0.0), TRACE_SECONDS - 1.0)
    )


class _Search:
    def __init__(self, ending: str, tally: Tally) -> None:
        self._ending = ending
        self._tally = tally
        self._seen: set[tuple[int, int]] = set()

    def below(self, folder: Path) -> Iterator[Source]:
        # Not recursive, because folders may be nested deeper than calls can be.
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            try:
                if not self._is_new(folder.stat()):
                    continue
                paths = list(folder.iterdir())
            except OSError as error:
                self._refuse("folder", folder, error)
                continue
            for path in paths:
                yield from self._at(path, waiting)

    def _at(self, path: Path, waiting: list[Path]) -> Iterator[Source]:
        wanted = path.name.endswith(self._ending)
        try:
            found = path.stat()
        except OSError as error:
            if wanted:
                self._refuse("file", path, error)
            return
        if stat.S_ISDIR(found.st_mode):
            waiting.append(path)
        elif wanted and not stat.S_ISREG(found.st_mode):
            self._tally.name("file that is not a regular file skipped", str(path))
        elif wanted and self._is_new(found):
            yield _source(path, found)

    def _is_new(self, found: os.stat_result) -> bool:
        key = (found.st_dev, found.st_ino)
        new = key not in self._seen
        self._seen.add(key)
        return new

    def _refuse(self, kind: str, path: Path, error: OSError) -> None:
        place = f"{path} ({error.strerror})"
        self._tally.name(f"{kind} that cannot be read skipped", place)


def read_records(
    source: Source, tally: Tally, bar: tqdm[NoReturn] | None = None
) -> Iterator[tuple[str, dict[str, Json]]]:
    """Yield the JSON object in each line of a file, after its place, ``file:line``.

    Lines of more than :data:`~mlxlab.limits.LINE_BYTES` bytes are never held in memory.

    Args:
        source: the file.
        tally: counts the lines without a JSON object.
        bar: a bar to advance, in bytes.
    """
    try:
        with open_regular(source.path) as file:
            for number, line in enumerate(_lines(file, bar), start=1):
                place = f"{source}:{number}"
                if line is None:
                    tally.name(f"line over {LINE_BYTES:,} bytes skipped", place)
                elif (value := _record(line, place, tally)) is not None:
                    yield place, value
    except OSError as error:
        tally.name("file that cannot be read skipped", f"{source} ({error.strerror})")


def read_document(source: Source, tally: Tally) -> dict[str, Json] | None:
    """Return the JSON object that a file consists of, None if it does not."""
    if source.size > LINE_BYTES:
        tally.name(f"file over {LINE_BYTES:,} bytes skipped", str(source))
        return None
    try:
        value = _decoded(read_whole(source.path))
    except OSError as error:
        tally.name("file that cannot be read skipped", f"{source} ({error.strerror})")
        return None
    if not isinstance(value, dict):
        tally.name("file that is not a JSON object skipped", str(source))
        return None
    return value


def peek(path: Path) -> list[dict[str, Json]]:
    """Return the JSON objects in the first lines of a file, none if unreadable."""
    records: list[dict[str, Json]] = []
    try:
        with open_regular(path) as file:
            for _, line in zip(range(_PEEKED_LINES), _lines(file), strict=False):
                value = _decoded(line or b"")
                if isinstance(value, dict):
                    records.append(value)
    except OSError:
        return []
    return records


def bytes_bar(sources: list[Source], progress: bool) -> tqdm[NoReturn]:
    """Return a progress bar over the bytes of ``sources``."""
    size = sum(source.size for source in sources)
    return tqdm(
        total=size, desc="importing", unit="B", unit_scale=True, disable=not progress
    )


def _lines(
    file: IO[bytes], bar: tqdm[NoReturn] | None = None
) -> Iterator[bytes | None]:
    """Yield lines with their ends, None for lines that are too long."""
    while line := file.readline(LINE_BYTES + 1):
        size, whole = len(line), len(line) <= LINE_BYTES
        rest = line
        while not whole and rest and not rest.endswith(b"\n"):
            rest = file.readline(_CHUNK)
            size += len(rest)
        if bar is not None:
            bar.update(size)
        yield line if whole else None


def _record(line: bytes, place: str, tally: Tally) -> dict[str, Json] | None:
    value = _decoded(line)
    if isinstance(value, dict):
        return value
    if line.isspace():
        return None
    if value is None and not line.endswith(b"\n"):
        tally.name(PARTIAL_LINE, place)
    else:
        tally.name("line that is not a JSON object skipped", place)
    return None


def _decoded(line: bytes) -> Json:
    """Return the decoded value, None if it is not JSON."""
    try:
        return decode(line)
    except (ValueError, RecursionError):
        return None
