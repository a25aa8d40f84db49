"""Atomic writes, JSON files, gzip files, and the user's cache folder."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from mlxlab.errors import MlxlabError

__all__ = [
    "cache_folder",
    "content_sample",
    "make_folder",
    "read_json",
    "replaced",
    "unpacked",
    "write_json",
    "write_private",
]


#: Larger files are sampled.
_WHOLE_BELOW = 64 * 2**20


def cache_folder() -> Path:
    """Return the user's folder for cached files; it may not exist yet.

    Raises:
        FileNotFoundError: neither HOME nor XDG_CACHE_HOME is an absolute path, so
            nothing is cached.
    """
    home = os.environ.get("HOME", "")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache"))
    if not folder.is_absolute():
        raise FileNotFoundError("neither HOME nor XDG_CACHE_HOME is an absolute path")
    return folder / "mlxlab"


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, accessible to this user only.

    Raises:
        OSError: a folder cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` when the block ends without an error.

    Missing folders are made. The file and these folders are for this user only.

    Raises:
        OSError: the file cannot be written; ``path`` is unchanged.
    """
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user can read, whole or not at all.

    Its folder is closed to other users too, also one that was open before.

    Raises:
        OSError: the file cannot be written, or the folder is another user's.
    """
    make_folder(path.parent)
    path.parent.chmod(0o700)
    with replaced(path) as file:
        file.write(data)


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, gzipped or not.

    Raises:
        OSError: the file cannot be read. Reading in the block raises it too;
            ``strerror`` has the reason.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as content:
                    yield cast(IO[bytes], content)
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise OSError(None, "damaged, not a complete gzip file", str(path)) from None


def write_json(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON object atomically; gzip it if the name ends in ``.gz``.

    Raises:
        MlxlabError: the file cannot be written.
    """
    data = json.dumps(content, indent=1).encode() + b"\n"
    if Path(path).suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # equal content gives equal files
    try:
        with replaced(Path(path)) as file:
            file.write(data)
    except OSError as error:
        raise MlxlabError(f"{path}: {error.strerror}; give a file to write") from None


def read_json(path: str | Path) -> Any:
    """Read a file that :func:`write_json` wrote.

    Raises:
        MlxlabError: the file cannot be read or is not JSON.
    """
    try:
        with unpacked(Path(path)) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise MlxlabError(f"{path}: {reason}; give a JSON file of mlxlab") from None


def content_sample(file: Path) -> bytes:
    """Return what tells a file from others of its kind: its content.

    From 64 MiB on, it is the size, the first MiB and the last MiB.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size < _WHOLE_BELOW:
            return stream.read()
        head = stream.read(2**20)
        stream.seek(-(2**20), os.SEEK_END)
        return str(size).encode() + head + stream.read()
