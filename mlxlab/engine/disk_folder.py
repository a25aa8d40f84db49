"""The folder of all stored keys and values: one size for all models and credentials."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from hashlib import sha256
from pathlib import Path

from mlxlab.engine.disk_store import DiskStore
from mlxlab.engine.disk_writer import DiskWriter
from mlxlab.errors import DiskError
from mlxlab.files import make_folder
from mlxlab.ownership import require_own
from mlxlab.strategies import Disk

__all__ = ["DiskFolder"]

log = logging.getLogger(__name__)

#: Part of each name: folders of another format are never opened.
_FORMAT = 1
#: Most bytes that wait to be written, by default.
_BACKLOG = 1 << 30


class DiskFolder:
    """Stores by name, for one process at a time.

    A store that needs room takes it from the store that was used least recently.

    Args:
        path: made if it is missing, for this user only.
        size: most bytes of everything in it.
        backlog: most bytes that wait in memory to be written.

    Attributes:
        path: see above.
        size: see above.

    Raises:
        DiskError: another process uses it, or another user may have written it.
    """

    def __init__(self, path: Path, size: int, *, backlog: int = _BACKLOG) -> None:
        self.path = path
        self.size = size
        self._stores: dict[str, DiskStore] = {}  # least recent first
        try:
            make_folder(path)
            require_own(path)
            path.chmod(0o700)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._closed = _folders(path)
        except BlockingIOError:
            os.close(self._lock)
            raise DiskError(
                f"{path}: another process uses it; this one runs without disk"
            ) from None
        except OSError as error:
            raise DiskError(f"{path}: {error.strerror}; no disk is used") from None
        self._writer = DiskWriter(backlog)

    @property
    def nbytes(self) -> int:
        """Bytes of everything, at most."""
        held = sum(store.disk.nbytes for store in self._stores.values())
        return held + sum(self._closed.values())

    def open(self, name: str, disk: Disk) -> DiskStore:
        """Return the store of a name; the first time it gets this policy.

        Args:
            name: all that its content depends on.
            disk: an empty policy.

        Raises:
            DiskError: its folder cannot be used.
        """
        key = sha256(f"{_FORMAT} {name}".encode()).hexdigest()[:32]
        if key not in self._stores:
            folder = self.path / key
            if self._closed.pop(folder, None) is None:
                self._free(disk.nbytes)  # of an index
                self._writer.flush()
            self._stores[key] = DiskStore(folder, disk, self._writer, self._make_room)
        self._make_room(self._stores[key])
        return self._stores[key]

    def close(self) -> None:
        """Write everything, and let other processes use the folder."""
        for store in self._stores.values():
            store.close()
        self._writer.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _make_room(self, used: DiskStore) -> None:
        """Make this store the most recent, and erase what is too much."""
        key = used.folder.name
        self._stores[key] = self._stores.pop(key)
        used.folder.touch()  # its time orders the folders of later processes
        self._free(0)

    def _free(self, needed: int) -> None:
        """Erase until this many bytes are free: earlier folders first, then stores."""
        most = self.size - needed
        while self._closed and self.nbytes > most:
            folder = next(iter(self._closed))
            log.info("disk: %s removed to make room", folder)
            shutil.rmtree(folder, ignore_errors=True)
            del self._closed[folder]
        for store in self._stores.values():
            excess = self.nbytes - most
            if excess <= 0:
                return
            store.erase(store.disk.shrink(store.disk.nbytes - excess))


def _folders(path: Path) -> dict[Path, int]:
    """Return the folders of earlier processes, the least recent first, with bytes."""
    folders = [folder for folder in path.iterdir() if folder.is_dir()]
    folders.sort(key=lambda folder: folder.stat().st_mtime)
    return {f: sum(file.lstat().st_size for file in f.iterdir()) for f in folders}
