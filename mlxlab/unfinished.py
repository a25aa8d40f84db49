"""Files and folders that have no final name yet; leftovers of killed processes go.

Each is locked while it is made. The lock ends with the process, however that ends. So
what is not locked was left behind, and the next one in the same folder removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

__all__ = ["scratch_folder", "unfinished_file", "unfinished_folder"]

_PREFIX, _SUFFIX = ".mlxlab-", ".part"
#: Names as :mod:`tempfile` makes them.
_NAME = re.compile(rf"{re.escape(_PREFIX)}[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")


def unfinished_file(folder: Path) -> AbstractContextManager[Path]:
    """Make an empty file for this user only; it is to be renamed in the block.

    If it is not, it is removed.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    return _unfinished(folder, _make_file)


def unfinished_folder(folder: Path) -> AbstractContextManager[Path]:
    """Make an empty folder in another one; see :func:`unfinished_file`."""
    return _unfinished(folder, _make_folder)


def scratch_folder() -> AbstractContextManager[Path]:
    """Make an empty folder where the system keeps temporary files.

    It is removed at the end of the block.

    Raises:
        OSError: it cannot be made.
    """
    return _unfinished(Path(tempfile.gettempdir()), _make_folder)


@contextmanager
def _unfinished(folder: Path, make: Callable[[Path], Path]) -> Iterator[Path]:
    _remove_leftovers(folder)
    part, lock = _locked(folder, make)
    try:
        yield part
    finally:
        _remove(part)
        os.close(lock)


def _make_file(folder: Path) -> Path:
    descriptor, name = tempfile.mkstemp(_SUFFIX, _PREFIX, folder)
    os.close(descriptor)
    return Path(name)


def _make_folder(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(_SUFFIX, _PREFIX, folder))


def _locked(folder: Path, make: Callable[[Path], Path]) -> tuple[Path, int]:
    """Return a new file or folder, and the descriptor that locks it."""
    while True:
        part = make(folder)
        try:
            lock = os.open(part, os.O_RDONLY)
        except FileNotFoundError:
            continue  # before it was locked, it was removed as a leftover
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if part.exists():
            return part, lock
        os.close(lock)


def _remove_leftovers(folder: Path) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                _remove_unlocked(folder / entry.name)


def _remove_unlocked(part: Path) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with suppress(OSError), ExitStack() as opened:
        opened.callback(os.close, lock := os.open(part, flags))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(part)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
