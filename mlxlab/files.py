"""Atomic writes, JSON files, and the user's cache folder."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mlxlab.content import unpacked
from mlxlab.errors import ConfigError, MlxlabError

__all__ = [
    "cache_folder",
    "expanded",
    "make_folder",
    "read_json",
    "replaced",
    "write_json",
    "write_private",
]


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


def expanded(path: str | Path) -> Path:
    """Return a path with the user's home folder in place of ``~``.

    Raises:
        ConfigError: the home folder is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: no home folder is known; set HOME") from None


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
        with unpacked(Path(path)) as content:
            return json.loads(content.read())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise MlxlabError(f"{path}: {reason}; give a JSON file of mlxlab") from None
