"""The index of one folder of the disk: which file holds which tokens.

Each row carries a digest of its file, and a seal over itself and the rows in front. So
neither a flipped byte nor an exchanged row can join keys and values to other tokens.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Container, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from mlxlab.strategies import Handle, Record

__all__ = ["DiskIndex", "Row"]

# ``used`` changes with each request and has a table of its own, so that few pages are
# written then.
_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    handle INTEGER PRIMARY KEY, parent INTEGER NOT NULL, start INTEGER NOT NULL,
    stop INTEGER NOT NULL, ids BLOB NOT NULL, size INTEGER NOT NULL,
    digest BLOB NOT NULL, seal BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS uses (handle INTEGER PRIMARY KEY, used INTEGER NOT NULL);
"""
_ALL = """
SELECT handle, parent, start, stop, used, ids, size, digest, seal
FROM files JOIN uses USING (handle) ORDER BY start, stop
"""
#: Pages of the log before it is written back, so that it stays small.
_LOG_PAGES = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One file.

    Attributes:
        record: the tokens.
        size: bytes of the file.
        digest: SHA-256 of its content.
        seal: SHA-256 of all this and of the seal of the rows in front.
    """

    record: Record
    size: int
    digest: bytes
    seal: bytes

    @classmethod
    def of(cls, record: Record, size: int, digest: bytes, before: bytes) -> Self:
        """Seal a row.

        Args:
            record: the tokens.
            size: bytes of the file.
            digest: of the file.
            before: the seal of the record's parent; empty if it has none.
        """
        numbers = (record.handle, record.parent, record.start, record.stop, size)
        parts = (repr(numbers).encode(), sha256(record.ids).digest(), digest, before)
        return cls(record, size, digest, sha256(b"".join(parts)).digest())


class DiskIndex:
    """A SQLite database; one thread at a time may use it.

    Args:
        path: of the database, made if it is missing, for this user only.

    Raises:
        sqlite3.Error: the database is damaged, or cannot be opened.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        self._database = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False
        )
        try:
            run = self._database.execute
            run("PRAGMA auto_vacuum=FULL")  # what is erased takes no place
            run("PRAGMA journal_mode=WAL")
            run(f"PRAGMA journal_size_limit={_LOG_PAGES << 12}")
            run("PRAGMA synchronous=NORMAL")
            run(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            self._database.executescript(_TABLES)
            ((found,),) = run("PRAGMA quick_check(1)")
            if found != "ok":
                raise sqlite3.DatabaseError(f"database: {found}")
        except BaseException:
            self._database.close()
            raise

    def rows(self) -> list[Row]:
        """Return the rows whose seals hold, parents before their children.

        Raises:
            sqlite3.Error: the database is damaged.
        """
        found: dict[Handle, Row] = {}
        for *numbers, ids, size, digest, seal in self._database.execute(_ALL):
            if not _is_row([*numbers, size], ids, digest):
                continue
            handle, parent_handle, start, stop, used = numbers
            record = Record(handle, parent_handle, start, stop, used, ids)
            parent = found.get(record.parent)
            row = Row.of(record, size, digest, parent.seal if parent else b"")
            if row.seal == seal and (parent is None) == (record.parent == 0):
                found[record.handle] = row
        return list(found.values())

    def keep(self, handles: Container[Handle]) -> None:
        """Remove all other rows.

        Raises:
            sqlite3.Error: the database is damaged.
        """
        every = "SELECT handle FROM files UNION SELECT handle FROM uses"
        found = [handle for (handle,) in self._database.execute(every)]
        self.remove(handle for handle in found if handle not in handles)

    def add(self, row: Row) -> None:
        """Add a row; its file is complete."""
        record = row.record
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(record.handle, record.parent, record.start, record.stop),
                    *(record.ids, row.size, row.digest, row.seal),
                ),
            )
            self._database.execute(
                "INSERT OR REPLACE INTO uses VALUES (?, ?)",
                (record.handle, record.used),
            )

    def remove(self, handles: Iterable[Handle]) -> None:
        """Remove rows; their files go afterwards."""
        own = [(handle,) for handle in handles]
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany("DELETE FROM files WHERE handle = ?", own)
            self._database.executemany("DELETE FROM uses WHERE handle = ?", own)

    def touch(self, handles: Iterable[Handle], number: int) -> None:
        """Note which rows a commit has used."""
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany(
                "UPDATE uses SET used = ? WHERE handle = ?",
                [(number, handle) for handle in handles],
            )

    def close(self) -> None:
        """Write the log back."""
        self._database.close()


def _is_row(numbers: list[object], ids: object, digest: object) -> bool:
    """Whether values are of the types that were written; damage may change them."""
    blobs = isinstance(ids, bytes) and isinstance(digest, bytes)
    return blobs and all(type(number) is int for number in numbers)
