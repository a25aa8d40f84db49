"""The contract of hashed formats: recognize a file, open it, read its requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from mlxlab.content import unpacked
from mlxlab.limits import BLOCK_NUMBERS, UNIT_TOKENS, WORD_CHARACTERS
from mlxlab.traces.formats import Format, Registry
from mlxlab.traces.hashed.trace import HashedRequest, HashedTrace

__all__ = [
    "HASHED_FORMATS",
    "BlockId",
    "Count",
    "HashedFormat",
    "Unit",
    "Word",
]

Count = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
"""A number of tokens."""
Unit = Annotated[int, Field(strict=True, ge=1, le=UNIT_TOKENS)]
"""Tokens that one hash stands for."""
BlockId = Annotated[int, Field(strict=True, ge=0, lt=BLOCK_NUMBERS)]
"""A number of a block in a file; readers keep a table of all below the largest one."""

Word = Annotated[str, Field(max_length=WORD_CHARACTERS)]
"""A stop reason, or the name of a tool."""

_HEAD_BYTES = 1 << 14
#: The first line of a recorded trace. Its tools may have parameters of any name.
_RECORDED = b'{"kind":"trace"'


class HashedFormat(Format):
    """A form in which hashed traces are published.

    Attributes:
        signature: bytes that only files of this format have near their beginning,
            without white space.
    """

    signature: ClassVar[bytes]

    def recognizes(self, path: Path) -> bool:
        head = _head(path)
        return self.signature in head and not head.startswith(_RECORDED)

    def open(self, path: Path) -> HashedTrace:
        """Open the trace in a file, packed with gzip or not.

        Raises:
            TraceError: the file cannot be read, or does not have the format.
        """
        return HashedTrace(path, self.unit(path), self.requests)

    @abstractmethod
    def unit(self, path: Path) -> int:
        """Return how many tokens one hash of the file stands for.

        Raises:
            TraceError: the file cannot be read, or does not have the format.
        """

    @abstractmethod
    def requests(self, path: Path) -> Iterator[HashedRequest]:
        """Yield the requests of a file in order of arrival.

        Raises:
            TraceError: a damaged line; the message names file and line.
        """


HASHED_FORMATS: Registry[HashedFormat] = Registry("mlxlab.traces.hashed")


def _head(path: Path) -> bytes:
    """Return the beginning of a file without white space, empty if unreadable."""
    try:
        with unpacked(path) as file:
            return b"".join(file.head(_HEAD_BYTES).split())
    except OSError:
        return b""
