"""Writes files whole or not at all: those that users name, and those of the cache."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mlxlab.content import unpacked
from mlxlab.errors import MlxlabError
from mlxlab.unfinished import unfinished_file, unfinished_folder

__all__ = [
    "cache_folder",
    "create",
    "is_writable",
    "locked",
    "make_folder",
    "read_json",
    "replaced",
    "replaced_folder",
    "write_json",
    "write_private",
    "written",
]

#: Kinds of files that take bytes as they come.
_STREAMS = (stat.S_IFIFO, stat.S_IFCHR)


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
def written(path: Path) -> Iterator[IO[bytes]]:
    """Open the file that a user has named for a result.

    A regular file is replaced when the block ends without an error, and keeps its mode
    and owner. Links are followed. A new file is for this user only. Into a pipe, a
    device or the process's own output, bytes are written as they come.

    Raises:
        OSError: the file cannot be written; a regular one is unchanged.
    """
    with ExitStack() as opened:
        if (descriptor := _open_stream(path)) is not None:
            yield opened.enter_context(os.fdopen(descriptor, "wb"))
            return
        path = Path(os.path.realpath(path))
        if like := _status(path):
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))  # may it be written?
        yield opened.enter_context(replaced(path, like))


def create(path: Path) -> int:
    """Return the descriptor of a new file that a user has named, to append to it.

    It is for this user only. Links, pipes and devices are as in :func:`written`.

    Raises:
        FileExistsError: there is a file already.
        OSError: the file cannot be written.
    """
    if (descriptor := _open_stream(path)) is not None:
        return descriptor
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    return os.open(os.path.realpath(path), flags, 0o600)


def is_writable(path: Path) -> bool:
    """Return whether :func:`written` can write here, as far as can be seen now."""
    try:
        status = _status(path)
    except OSError:
        return False
    if status and not os.access(path, os.W_OK):
        return False
    if status and not stat.S_ISREG(status.st_mode):
        return stat.S_IFMT(status.st_mode) in _STREAMS
    path = Path(os.path.realpath(path))
    folder = next(own for own in path.parents if own.exists())
    return folder.is_dir() and os.access(folder, os.W_OK)


@contextmanager
def replaced(path: Path, like: os.stat_result | None = None) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` when the block ends without an error.

    A link is replaced too: this is for names that mlxlab chooses, :func:`written` for
    those of users. Missing folders are made, for this user only. So is the file. What
    killed processes left unfinished in the folder is removed.

    Args:
        path: the file.
        like: the file whose mode and owner the new one gets.

    Raises:
        OSError: the file cannot be written; ``path`` is unchanged.
    """
    make_folder(path.parent)
    with unfinished_file(path.parent) as part:
        with part.open("wb") as file:
            yield file
            file.flush()
            if like:
                _make_like(file.fileno(), like)
            os.fsync(file.fileno())
        part.replace(path)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that gets the name ``path`` when the block succeeds.

    If another process was faster, its folder stays. Leftovers are removed as in
    :func:`replaced`.

    Raises:
        OSError: the folder cannot be written.
    """
    make_folder(path.parent)
    with unfinished_folder(path.parent) as part:
        yield part
        try:
            part.rename(path)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out while a file of the folder is read and rewritten.

    A folder that cannot be locked, as on some network file systems, is not.
    """
    with ExitStack() as held:
        with suppress(OSError):
            make_folder(folder)
            held.callback(os.close, descriptor := os.open(folder, os.O_RDONLY))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


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


def write_json(
    content: Mapping[str, Any], path: str | Path, *, own: bool = False
) -> None:
    """Write a JSON object whole or not at all; gzip it if the name ends in ``.gz``.

    Args:
        content: the object.
        path: the file.
        own: whether mlxlab has named the file: see :func:`replaced`. By default a user
            has: see :func:`written`.

    Raises:
        MlxlabError: the file cannot be written.
    """
    path = Path(path)
    data = json.dumps(content, indent=1).encode() + b"\n"
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # equal content gives equal files
    try:
        with replaced(path) if own else written(path) as file:
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


def _status(path: Path) -> os.stat_result | None:
    """Return the status behind all links; None where nothing is."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _open_stream(path: Path) -> int | None:
    """Open what takes bytes as they come; None for a regular file or a free name."""
    status = _status(path)
    if status is None:
        return None
    for own in (1, 2):  # also where a shell has put a regular file or a socket there
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(own)):
                return os.dup(own)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        return None
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind not in _STREAMS:
        raise OSError(errno.EINVAL, "neither a file nor a pipe", str(path))
    # Without O_NONBLOCK the call would wait for a reader of the pipe.
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise OSError(errno.ENXIO, "no process reads this pipe", str(path)) from None
    os.set_blocking(descriptor, True)
    return descriptor


def _make_like(descriptor: int, like: os.stat_result) -> None:
    with suppress(OSError):  # only root may give files away
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, like.st_mode & 0o777)
