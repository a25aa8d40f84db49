"""The header of a GGUF file: its metadata, and the shapes and places of its tensors.

mlx trusts the lengths and offsets in a GGUF file, and reads beyond its end where they
are wrong. So every one of them is checked here first, without mlx.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from mlxlab.content import open_regular
from mlxlab.errors import ModelError
from mlxlab.limits import GGUF_STRING, GGUF_VALUES

__all__ = ["QUANTIZED", "Header", "Tensor", "open_file", "read_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _FLOAT64 = 8, 9, 12
#: Formats of numbers by type id.
_NUMBERS = dict(
    zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11), "BbHhIif?Qq", strict=True)  # no float64
)
#: Types that mlx reads right, by id: name, weights a block, bytes a block.
_KINDS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
#: Names of other types. Of Q4_K, the usual one, mlx 0.32 gives wrong weights.
_REFUSED = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K"}
_REFUSED |= {20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4"}
#: Types whose weights mlx leaves packed in groups of 32.
QUANTIZED = frozenset({"Q4_0", "Q4_1", "Q8_0"})

_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        kind: name of its type, such as ``Q4_0``.
        shape: rows first.
        start: of its bytes in the file.
    """

    kind: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the weights.

    Attributes:
        metadata: numbers, strings, and lists of them, by key.
        tensors: by name.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def open_file(path: Path) -> IO[bytes]:
    """Open a GGUF file for reading.

    Raises:
        ModelError: it is missing, cannot be read, or is not a regular file.
    """
    try:
        return open_regular(path)
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise ModelError(f"{reason}; give a GGUF file") from None


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file.

    Raises:
        ModelError: the file is damaged, or mlx cannot read it right.
    """
    with open_file(path) as file:
        return _Reader(file).header()


class _Reader:
    """Reads a header front to back, never beyond the file's end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def header(self) -> Header:
        if self._take(4) != _MAGIC:
            raise ModelError("not a GGUF file: it does not begin with GGUF")
        version = self._number(4)
        if version not in _VERSIONS:
            raise ModelError(f"GGUF version {version}; mlxlab reads versions 2 and 3")
        tensor_count, key_count = self._count(), self._count()
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            name = self._string()
            if name in metadata:
                raise ModelError(f"damaged: key {name!r:.80} comes twice")
            metadata[name] = self._value(name)
        if metadata.get("general.alignment", _ALIGNMENT) != _ALIGNMENT:
            raise ModelError("an alignment other than 32 bytes, which mlx cannot read")
        found = [self._tensor() for _ in range(tensor_count)]
        return Header(metadata, self._placed(found))

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Return name, type id, shape, and offset behind the header."""
        name, dimensions = self._string(), self._number(4)
        if not 1 <= dimensions <= 4:
            raise ModelError(f"damaged: tensor {name!r:.80} of {dimensions} dimensions")
        shape = tuple(self._number(10) for _ in range(dimensions))
        return name, self._number(4), shape[::-1], self._number(10)

    def _placed(
        self, found: list[tuple[str, int, tuple[int, ...], int]]
    ) -> dict[str, Tensor]:
        base = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        tensors: dict[str, Tensor] = {}
        for name, kind, shape, offset in found:
            title, weights, size = _kind(name, kind)
            bytes_ = prod(shape) // weights * size
            if name in tensors or 0 in shape or shape[-1] % weights:
                raise ModelError(f"damaged: tensor {name!r:.80} {shape}")
            if offset % _ALIGNMENT or base + offset + bytes_ > self._size:
                raise ModelError(
                    f"damaged or cut short: tensor {name!r:.80} ends behind the file"
                )
            tensors[name] = Tensor(title, shape, base + offset)
        return tensors

    def _value(self, name: str) -> Any:
        kind = self._number(4)
        if kind != _ARRAY:
            return self._scalar(name, kind)
        kind, count = self._number(4), self._count()
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        form = f"<{count}{_number_format(name, kind)}"
        return list(struct.unpack(form, self._take(struct.calcsize(form))))

    def _scalar(self, name: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        _number_format(name, kind)
        return self._number(kind)

    def _number(self, kind: int) -> Any:
        form = f"<{_NUMBERS[kind]}"
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self) -> int:
        count = int(self._number(10))
        if count > GGUF_VALUES:
            raise ModelError(f"damaged: it claims {count:,} entries")
        return count

    def _string(self) -> str:
        try:
            return self._take(int(self._number(10))).decode()
        except UnicodeDecodeError:
            raise ModelError("damaged: a text that is not UTF-8") from None

    def _take(self, size: int) -> bytes:
        if size > GGUF_STRING:
            raise ModelError(f"damaged: it claims {size:,} bytes of text or numbers")
        data = self._file.read(size)
        if len(data) < size:
            raise ModelError("damaged or cut short: it ends within its header")
        return data


def _kind(name: str, kind: int) -> tuple[str, int, int]:
    if kind not in _KINDS:
        accepted = ", ".join(title for title, _, _ in _KINDS.values())
        title = _REFUSED.get(kind, f"type {kind}")
        raise ModelError(
            f"tensor {name!r:.80} is {title}, which mlx cannot read; "
            f"give a file of {accepted}"
        )
    return _KINDS[kind]


def _number_format(name: str, kind: int) -> str:
    if kind == _FLOAT64:
        raise ModelError(f"key {name!r:.80} is float64, which mlx cannot read")
    if kind not in _NUMBERS:
        raise ModelError(f"damaged: key {name!r:.80} of type {kind}")
    return _NUMBERS[kind]
