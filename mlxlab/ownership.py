"""Checks that only this user can have written a file.

Cached files are run, or decide where a token is sent. A file that another user can
write or replace is refused: its mode counts, and so does every folder and link on its
path. Root is trusted with folders and links, because root can do anything.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from mlxlab.errors import UntrustedError
from mlxlab.limits import LINE_BYTES

__all__ = ["read_own", "require_own"]

Step: TypeAlias = tuple[Path, os.stat_result]

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_OPEN = stat.S_IRWXG | stat.S_IRWXO
_MOST_LINKS = 40  # as in Linux


def require_own(path: Path) -> None:
    """Check that only this user can have written a file or folder.

    Raises:
        UntrustedError: another user may have written it, or can replace it.
        OSError: it is missing, or cannot be inspected.
    """
    *way, (_, end) = _way(path)
    _require_way(path, way)
    if not _is_own(end, _WRITABLE):
        raise _untrusted(path, "others may write it")


def read_own(path: Path, *, secret: bool = False) -> bytes:
    """Read a file that only this user can have written.

    The check and the read use one descriptor, so they see one file. A link in place of
    the file is refused. A pipe is refused without waiting for it.

    Args:
        path: absolute.
        secret: whether the file must also be unreadable to other users.

    Raises:
        UntrustedError: another user may have written it, or can replace it.
        OSError: it is missing, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_itself) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _untrusted(path, "not a regular file")
            if not _is_own(status, _OPEN if secret else _WRITABLE):
                access = "read or write" if secret else "write"
                raise _untrusted(path, f"others may {access} it")
            _require_way(path, _way(path.parent))
            data = file.read(LINE_BYTES + 1)
            if len(data) > LINE_BYTES:
                raise _untrusted(path, f"it has more than {LINE_BYTES:,} bytes")
            return data
    except UntrustedError:
        raise
    except OSError:
        if path.is_symlink():
            raise _untrusted(path, "a link in place of a file") from None
        raise


def _open_itself(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _untrusted(path: Path, reason: str) -> UntrustedError:
    return UntrustedError(None, reason, str(path))


def _is_own(status: os.stat_result, forbidden: int) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & forbidden


def _require_way(path: Path, way: Iterable[Step]) -> None:
    for step, status in way:
        if status.st_uid not in (os.geteuid(), 0):
            raise _untrusted(path, f"{step} is another user's")
        # A link's mode means nothing. In a sticky folder, such as /tmp, only their
        # owner can rename or remove files.
        safe = stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_ISVTX
        if status.st_mode & _WRITABLE and not safe:
            raise _untrusted(path, f"others may write {step} (chmod go-w {step})")


def _way(path: Path) -> Iterator[Step]:
    """Yield every folder and link from the root to ``path``, then the file itself.

    The text of the path would leave out the folders behind a link.
    """
    here, links = Path("/"), 0
    left = deque(path.parts[1:])
    yield here, here.lstat()
    while left:
        name = left.popleft()
        if name == "..":
            here = here.parent
            continue
        step = here / name
        status = step.lstat()
        yield step, status
        if not stat.S_ISLNK(status.st_mode):
            here = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise _untrusted(path, "too many links")
        # A link's target starts at the root, or after ``here``.
        left.extendleft(reversed((here / step.readlink()).parts[1:]))
        here = Path("/")
