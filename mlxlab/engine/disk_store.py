"""Keys, values and checkpoints of one model on disk, for one credential.

The worker thread packs and reads; the writer's thread writes and erases, in order. A
file is whole or absent, and its row of the index follows it. What cannot be read or
written is a miss and one line of the log.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from types import MappingProxyType

from mlxlab.engine.disk_file import (
    pack_checkpoint,
    pack_rows,
    unpack_checkpoint,
    unpack_rows,
)
from mlxlab.engine.disk_index import DiskIndex, Row
from mlxlab.engine.disk_writer import DiskWriter
from mlxlab.engine.kv_store import Rows
from mlxlab.engine.working_cache import Checkpoint, WorkingCache
from mlxlab.errors import DiskError
from mlxlab.files import make_folder, replaced
from mlxlab.strategies import Disk, DiskCommit, Handle, Plan, Record, Tier

__all__ = ["DiskStore"]

log = logging.getLogger(__name__)

_INDEX = "index.sqlite"
_SUFFIX = ".safetensors"


class DiskStore:
    """The files of one folder, and the policy that decides about them.

    Args:
        folder: made if it is missing, for this user only. Nobody else may write it.
        disk: the policy; it gets what the folder holds.
        writer: writes and erases.
        make_room: called before changes, to erase what other folders hold.

    Attributes:
        disk: see above.

    Raises:
        DiskError: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        writer: DiskWriter,
        make_room: Callable[[DiskStore], None] = lambda store: None,
    ) -> None:
        self.folder = folder
        self.disk = disk
        self._writer = writer
        self._make_room = make_room
        self._lock = Lock()
        self._waiting: dict[Handle, bytes] = {}  # packed, not written yet
        self._rows: dict[Handle, Row] = {}  # written
        self._failed: list[Handle] = []
        self._is_failing = False
        try:
            self._index = self._open()
            self._load()
        except (OSError, sqlite3.Error) as error:
            raise DiskError(f"{folder}: {_reason(error)}; no disk is used") from error

    def apply(
        self,
        commit: DiskCommit,
        cache: WorkingCache,
        taken: Mapping[int, Checkpoint] = MappingProxyType({}),
    ) -> None:
        """Pack what a commit writes, and queue its changes.

        Args:
            commit: the changes.
            cache: the caches of the computed sequence.
            taken: checkpoints taken on the way, by position.
        """
        self._make_room(self)
        self.erase(commit)
        if commit.used:
            touch = partial(self._index.touch, commit.used, commit.number)
            self._writer.submit(partial(self._try, touch))
        rows = cache.rows() if commit.write else []
        for record in commit.write:
            if not self._writer.takes(self.disk.record_bytes(record)):
                self._fail(record.handle, "more to write than may wait")
                break  # what follows depends on it
            if record.is_checkpoint:
                found = taken.get(record.stop) or cache.checkpoint(record.stop)
                data = pack_checkpoint(found)
            else:
                data = pack_rows(rows, record.start, record.stop)
            with self._lock:
                self._waiting[record.handle] = data
            self._writer.submit(partial(self._write, record), len(data))

    def erase(self, commit: DiskCommit) -> None:
        """Queue what a commit erases."""
        if not commit.erase:
            return
        with self._lock:
            for handle in commit.erase:
                self._waiting.pop(handle, None)
        self._writer.submit(partial(self._erase, commit.erase))

    def settle(self) -> None:
        """Let the policy forget what could not be written; on the worker thread."""
        with self._lock:
            failed, self._failed = self._failed, []
        for handle in failed:
            self.erase(self.disk.lose(handle))

    def load(self, plan: Plan) -> tuple[dict[Handle, Rows], Checkpoint | None]:
        """Return the rows that a plan takes from disk, and its checkpoint.

        Raises:
            DiskError: something cannot be read. The policy has forgotten it, so the
                next plan does without.
        """
        rows: dict[Handle, Rows] = {}
        checkpoint = None
        handle: Handle = 0
        try:
            for span in plan.spans:
                if span.tier is Tier.DISK:
                    handle = span.handle
                    record = self.disk.record(handle)
                    length = record.stop - record.start
                    rows[handle] = unpack_rows(self._read(handle), length)
            if plan.resume is not None and plan.resume_tier is Tier.DISK:
                handle = plan.resume
                checkpoint = unpack_checkpoint(self._read(handle))
        except (OSError, ValueError, KeyError) as error:
            self.erase(self.disk.lose(handle))
            raise DiskError(f"{self._file(handle)}: {_reason(error)}") from None
        return rows, checkpoint

    def flush(self) -> None:
        """Wait until everything is written."""
        self._writer.flush()

    def close(self) -> None:
        """Write everything, and close the index."""
        self._writer.submit(self._index.close)
        self._writer.flush()

    def _read(self, handle: Handle) -> bytes:
        """Return the content of a file.

        Raises:
            ValueError: it is not what was written.
            OSError: it cannot be read.
        """
        with self._lock:
            waiting = self._waiting.get(handle)
            row = self._rows.get(handle)
        if waiting is not None:
            return waiting
        if row is None:
            raise ValueError("not written")
        data = self._file(handle).read_bytes()
        if sha256(data).digest() != row.digest:
            raise ValueError("damaged")
        return data

    def _open(self) -> DiskIndex:
        """Open the index; one that is damaged is begun anew, without any file."""
        make_folder(self.folder)
        self.folder.chmod(0o700)
        path = self.folder / _INDEX
        try:
            return DiskIndex(path)
        except sqlite3.Error as error:
            log.warning("%s: %s; the disk begins empty", path, _reason(error))
            shutil.rmtree(self.folder)
            make_folder(self.folder)
            return DiskIndex(path)

    def _load(self) -> None:
        """Give the policy what is whole, and remove everything else."""
        try:
            found = self._index.rows()
        except sqlite3.Error as error:
            log.warning("%s: %s; the disk begins empty", self.folder, _reason(error))
            self._index.close()
            shutil.rmtree(self.folder)
            make_folder(self.folder)
            self._index, found = DiskIndex(self.folder / _INDEX), []
        whole = {row.record.handle: row for row in found if self._is_whole(row)}
        gone = self.disk.load(row.record for row in whole.values()).erase
        self._rows = {h: row for h, row in whole.items() if h not in gone}
        self._index.keep(self._rows)
        kept = {self._file(handle).name for handle in self._rows}
        for path in self.folder.iterdir():
            if path.name not in kept and not path.name.startswith(_INDEX):
                path.unlink()

    def _is_whole(self, row: Row) -> bool:
        """Whether the file is there, of the size that was written."""
        try:
            status = os.lstat(self._file(row.record.handle))
        except OSError:
            return False
        return status.st_size == row.size and status.st_mode & 0o077 == 0

    def _write(self, record: Record) -> None:
        with self._lock:
            data = self._waiting.get(record.handle)
            parent = self._rows.get(record.parent)
        if data is None:
            return  # erased meanwhile
        try:
            if len(data) > self.disk.record_bytes(record):
                raise ValueError("larger than its place")
            if record.parent and parent is None:
                raise ValueError("what is in front of it was not written")
            path = self._file(record.handle)
            with replaced(path) as file:
                file.write(data)
            before = parent.seal if parent else b""
            row = Row.of(record, len(data), sha256(data).digest(), before)
            self._index.add(row)
            with self._lock:
                self._rows[record.handle] = row
        except (OSError, ValueError, sqlite3.Error) as error:
            with suppress(OSError):
                self._file(record.handle).unlink(missing_ok=True)
            self._fail(record.handle, _reason(error))
            return
        finally:
            with self._lock:
                self._waiting.pop(record.handle, None)
        self._is_failing = False

    def _erase(self, handles: Iterable[Handle]) -> None:
        with self._lock:
            own = [handle for handle in handles if self._rows.pop(handle, None)]
        self._try(partial(self._index.remove, own))
        for handle in own:
            self._try(partial(self._file(handle).unlink, missing_ok=True))

    def _try(self, change: partial[None]) -> None:
        try:
            change()
        except (OSError, sqlite3.Error) as error:
            log.warning("%s: %s", self.folder, _reason(error))

    def _fail(self, handle: Handle, reason: str) -> None:
        """Note what was not written; the first of several failures is logged."""
        with self._lock:
            self._failed.append(handle)
        if not self._is_failing:
            log.warning("%s: %s; it is computed again", self._file(handle), reason)
        self._is_failing = True

    def _file(self, handle: Handle) -> Path:
        return self.folder / f"{handle}{_SUFFIX}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
