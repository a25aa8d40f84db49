"""Keys and values of some positions in fewer bits, as a store keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import mlx.core as mx

from mlxlab.engine.layer_caches import TokenRows
from mlxlab.models.kv_bits import FULL, KVBits

__all__ = ["PackedRows", "StoredRows", "pack", "pack_rest", "unpack"]


@dataclass(frozen=True, slots=True)
class _Packed:
    """The numbers of a token, all heads one after the other, in groups.

    Attributes:
        arrays: packed numbers, scales and offsets, one row for each position.
        shape: heads and width of a head.
        bits: of a number.
        group: numbers that share a scale.
    """

    arrays: tuple[mx.array, mx.array, mx.array]
    shape: tuple[int, int]
    bits: int
    group: int

    @classmethod
    def of(cls, rows: mx.array, bits: int, group: int) -> _Packed:
        """Pack an array of shape ``[1, heads, positions, width]``."""
        _, heads, positions, width = rows.shape
        flat = rows[0].swapaxes(0, 1).reshape(positions, heads * width)
        numbers, scales, offsets = mx.quantize(flat, group_size=group, bits=bits)
        return cls((numbers, scales, offsets), (heads, width), bits, group)

    def part(self, start: int, stop: int) -> _Packed:
        numbers, scales, offsets = (array[start:stop] for array in self.arrays)
        return replace(self, arrays=(numbers, scales, offsets))

    def copy(self) -> _Packed:
        numbers, scales, offsets = map(mx.contiguous, self.arrays)
        return replace(self, arrays=(numbers, scales, offsets))

    def unpacked(self) -> mx.array:
        """Return the array; its type is that of the scales, as before."""
        flat = mx.dequantize(*self.arrays, group_size=self.group, bits=self.bits)
        return flat.reshape(1, -1, *self.shape).swapaxes(1, 2)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The numbers of :class:`~mlxlab.engine.layer_caches.TokenRows`, packed."""

    keys: _Packed | mx.array
    values: _Packed | mx.array

    @property
    def positions(self) -> int:
        """Number of positions."""
        own = self.keys
        return own.arrays[0].shape[0] if isinstance(own, _Packed) else own.shape[2]

    def part(self, start: int, stop: int) -> PackedRows:
        """Return positions ``[start, stop)``, as a view."""
        return PackedRows(
            _part(self.keys, start, stop), _part(self.values, start, stop)
        )

    def copy(self) -> PackedRows:
        """Return a copy: a slice would keep the whole source alive."""
        return PackedRows(_copy(self.keys), _copy(self.values))

    @classmethod
    def joined(cls, rows: Sequence[PackedRows]) -> PackedRows:
        """Return rows one after the other."""
        if len(rows) == 1:
            return rows[0]
        return cls(
            _joined([part.keys for part in rows]),
            _joined([part.values for part in rows]),
        )

    def arrays(self) -> Iterator[mx.array]:
        """Yield all arrays."""
        for own in (self.keys, self.values):
            yield from own.arrays if isinstance(own, _Packed) else (own,)


StoredRows: TypeAlias = TokenRows | PackedRows
"""Rows as they were computed, or packed."""


def pack(rows: TokenRows, bits: KVBits) -> PackedRows:
    """Return rows in fewer bits, not evaluated."""
    return PackedRows(
        _packed(rows.keys, bits.keys, bits.group),
        _packed(rows.values, bits.values, bits.group),
    )


def pack_rest(
    rows: TokenRows,
    known: Iterable[tuple[int, PackedRows]],
    start: int,
    stop: int,
    bits: KVBits,
) -> PackedRows:
    """Return positions ``[start, stop)`` packed; what is packed already stays so.

    Packed anew it would drift: numbers that were rounded have another range.

    Args:
        rows: of all positions.
        known: first positions and packed rows of some of them, in order.
        start: the first position.
        stop: the position behind the last.
        bits: fewer than all.
    """
    pieces: list[PackedRows] = []
    position = start
    for first, own in known:
        begin, end = max(first, position), min(first + own.positions, stop)
        if begin >= end:
            continue
        if position < begin:
            pieces.append(pack(rows.part(position, begin), bits))
        pieces.append(own.part(begin - first, end - first))
        position = end
    if position < stop:
        pieces.append(pack(rows.part(position, stop), bits))
    return PackedRows.joined(pieces)


def unpack(rows: StoredRows) -> TokenRows:
    """Return rows in the type that they were computed in, not evaluated."""
    if isinstance(rows, TokenRows):
        return rows
    return TokenRows(_unpacked(rows.keys), _unpacked(rows.values))


def _packed(rows: mx.array, bits: int, group: int) -> _Packed | mx.array:
    # Some latents come without values: these have no width.
    if bits == FULL or rows.shape[3] == 0:
        return rows
    return _Packed.of(rows, bits, group)


def _unpacked(own: _Packed | mx.array) -> mx.array:
    return own.unpacked() if isinstance(own, _Packed) else own


def _part(own: _Packed | mx.array, start: int, stop: int) -> _Packed | mx.array:
    if isinstance(own, _Packed):
        return own.part(start, stop)
    return own[..., start:stop, :]


def _joined(parts: Sequence[_Packed | mx.array]) -> _Packed | mx.array:
    first = parts[0]
    if not isinstance(first, _Packed):
        return mx.concatenate([p for p in parts if isinstance(p, mx.array)], axis=2)
    packed = [part.arrays for part in parts if isinstance(part, _Packed)]
    numbers, scales, offsets = (
        mx.concatenate(list(own)) for own in zip(*packed, strict=True)
    )
    return replace(first, arrays=(numbers, scales, offsets))


def _copy(own: _Packed | mx.array) -> _Packed | mx.array:
    return own.copy() if isinstance(own, _Packed) else mx.contiguous(own)
