"""Reads files that others have made: regular ones only, and within limits.

A pipe would wait for ever, a device never ends, and a small packed file may unpack to
more than memory holds. Each is one OSError whose ``strerror`` has the reason.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from mlxlab.limits import LINE_BYTES, UNPACKED_BYTES

__all__ = [
    "Content",
    "content_sample",
    "open_content",
    "open_regular",
    "read_whole",
    "unpacked",
]

#: Larger files are sampled.
_WHOLE_BELOW = 64 * 2**20


class Content:
    """The content of a file, front to back.

    Reading raises OSError where a line, or what is read whole, is longer than
    ``LINE_BYTES``, or where a packed file unpacks to more than ``UNPACKED_BYTES``.

    Args:
        file: at its beginning.
        path: for errors.
        largest: most bytes in all.
    """

    def __init__(self, file: IO[bytes], path: Path, largest: int | None = None) -> None:
        self._file = file
        self._path = path
        self._largest = largest
        self._seen = 0

    def head(self, length: int) -> bytes:
        """Return the next bytes, this many at most."""
        return self._counted(self._file.read(length))

    def read(self) -> bytes:
        """Return all that is left."""
        return self._whole(self._file.read(LINE_BYTES + 1), "it has")

    def __iter__(self) -> Iterator[bytes]:
        """Yield lines with their ends."""
        while line := self._file.readline(LINE_BYTES + 1):
            yield self._whole(line, "a line has")

    def _whole(self, data: bytes, part: str) -> bytes:
        if len(data) > LINE_BYTES:
            raise self._refusal(f"{part} more than {LINE_BYTES:,} bytes")
        return self._counted(data)

    def _counted(self, data: bytes) -> bytes:
        self._seen += len(data)
        if self._largest is not None and self._seen > self._largest:
            raise self._refusal(f"it unpacks to more than {self._largest:,} bytes")
        return data

    def _refusal(self, reason: str) -> OSError:
        return OSError(errno.EFBIG, reason, str(self._path))


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, without waiting for a pipe.

    Raises:
        OSError: it is missing, cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


@contextmanager
def open_content(path: Path) -> Iterator[Content]:
    """Open a regular file as it is; see :class:`Content`.

    Raises:
        OSError: see :func:`open_regular`.
    """
    with open_regular(path) as file:
        yield Content(file, path)


def read_whole(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: see :func:`open_regular` and :class:`Content`.
    """
    with open_content(path) as content:
        return content.read()


@contextmanager
def unpacked(path: Path) -> Iterator[Content]:
    """Open a regular file, packed with gzip or not.

    Raises:
        OSError: see :func:`open_regular`. Reading in the block raises it too.
    """
    try:
        with open_regular(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as inner:
                    yield Content(cast(IO[bytes], inner), path, UNPACKED_BYTES)
            else:
                yield Content(file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise OSError(None, "damaged, not a complete gzip file", str(path)) from None


def content_sample(file: Path) -> bytes:
    """Return what tells a file from others of its kind: its content.

    From 64 MiB on, it is the size, the first MiB and the last MiB.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.stat().st_size
    with open_regular(file) as stream:
        if size < _WHOLE_BELOW:
            return stream.read()
        head = stream.read(2**20)
        stream.seek(-(2**20), os.SEEK_END)
        return str(size).encode() + head + stream.read()
