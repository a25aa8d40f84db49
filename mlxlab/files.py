"""Files that are written whole or not at all, and the user's folder for some."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["cache_folder", "replaced"]


def cache_folder() -> Path:
    """Where what can be made again is kept for this user; it need not exist yet.

    Raises:
        OSError: neither HOME nor XDG_CACHE_HOME is an absolute path.
    """
    home = os.environ.get("HOME", "")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache"))
    if not folder.is_absolute():
        raise OSError("neither HOME nor XDG_CACHE_HOME is an absolute path")
    return folder / "mlxlab"


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` once the block has ended well.

    Missing folders are made. The file is readable by its owner only.

    Raises:
        OSError: it cannot be written; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
