"""What can be stored of each of mlx-lm's cache classes, and how it is put back.

One class here for each kind of :class:`~mlxlab.models.layout.CacheKind`. mlx arrays are
immutable; so a reference is a copy, unless mlx-lm writes into an array in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    RotatingKVCache,
)

from mlxlab.errors import IntegrityError, ModelError
from mlxlab.models.layout import Windows

__all__ = [
    "CacheView",
    "Snapshot",
    "StateCache",
    "TokenCache",
    "TokenRows",
    "WindowCache",
    "flatten",
    "with_windows",
]

Snapshot: TypeAlias = tuple[mx.array | None, ...]
"""The arrays of a state or a window; None where the model has filled none."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Keys and values of some positions; the positions are axis 2 of both.

    Latents and indexers are stored as keys and values too. Widths differ, and may be 0.
    """

    keys: mx.array
    values: mx.array

    def part(self, start: int, stop: int) -> TokenRows:
        """Return positions ``[start, stop)``, as a view."""
        return TokenRows(self.keys[..., start:stop, :], self.values[..., start:stop, :])

    def copy(self) -> TokenRows:
        """Return a copy: a slice would keep the whole source alive."""
        return TokenRows(mx.contiguous(self.keys), mx.contiguous(self.values))

    def arrays(self) -> Iterator[mx.array]:
        """Yield both arrays."""
        yield from (self.keys, self.values)

    @classmethod
    def joined(cls, rows: Sequence[TokenRows]) -> TokenRows:
        """Return rows one after the other."""
        if len(rows) == 1:
            return rows[0]
        return cls(
            mx.concatenate([part.keys for part in rows], axis=2),
            mx.concatenate([part.values for part in rows], axis=2),
        )


class CacheView(ABC):
    """One of mlx-lm's cache objects."""

    cache: Any

    @property
    def mergeable(self) -> bool:
        """Whether mlx-lm can put it into one batch with others."""
        return hasattr(self.cache, "merge")

    @abstractmethod
    def mark(self) -> Any:
        """Return what :meth:`rewind` needs to come back to now."""

    @abstractmethod
    def rewind(self, mark: Any) -> None:
        """Forget everything since a mark."""

    @abstractmethod
    def arrays(self) -> Iterator[mx.array]:
        """Yield all arrays, to be evaluated."""


class TokenCache(CacheView):
    """Rows of every position: a plain KVCache, or a window that keeps them all."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def rows(self) -> TokenRows | None:
        """Return all positions; None if the model never fills this cache."""
        if self.cache.empty():
            return None
        keys, values = self.cache.state[:2]
        offset = self.cache.offset
        return TokenRows(keys[..., :offset, :], values[..., :offset, :])

    def append(self, rows: TokenRows) -> None:
        """Put rows behind the last position."""
        self.cache.update_and_fetch(rows.keys, rows.values)

    def mark(self) -> int:
        return int(self.cache.offset)

    def rewind(self, mark: int) -> None:
        self.cache.trim(self.cache.offset - mark)

    def arrays(self) -> Iterator[mx.array]:
        yield from (a for a in self.cache.state[:2] if a is not None)


class ConcatenatedCache(TokenCache):
    """Rows in arrays that are exactly as long as the sequence."""

    def mark(self) -> Any:
        return self.cache.keys, self.cache.values, self.cache.offset

    def rewind(self, mark: Any) -> None:
        self.cache.keys, self.cache.values, self.cache.offset = mark


class WindowCache(CacheView):
    """The latest positions of a RotatingKVCache or a ChunkedKVCache."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    @property
    def size(self) -> int:
        """Positions in a whole window."""
        rotates = isinstance(self.cache, RotatingKVCache)
        return int(self.cache.max_size if rotates else self.cache.chunk_size)

    def snapshot(self, position: int) -> Snapshot:
        """Return the window in front of a position, oldest first.

        Windows of shorter sequences are filled up with zeros, so that all are of one
        size. So is the oldest position of a window one step back, which mlx-lm has
        overwritten: the next step would drop it before it is seen.

        Args:
            position: the current one, or the one before.

        Raises:
            IntegrityError: the window has moved further.
        """
        if self.cache.empty():
            return (None, None)
        back = self.cache.offset - position
        keys, values = self._ordered()
        held = keys.shape[2] - back
        if not 0 <= back <= 1 or held < min(self.size - back, position):
            raise IntegrityError(
                f"windows: at {self.cache.offset}, asked for position {position}"
            )
        return tuple(self._whole(a[..., :held, :]) for a in (keys, values))

    def restore(self, snapshot: Snapshot, position: int) -> None:
        """Put a window in front of ``position`` back."""
        keys, values = snapshot
        if keys is None or values is None:
            return
        held = min(position, self.size)
        rows = (keys[..., -held:, :], values[..., -held:, :])
        if isinstance(self.cache, RotatingKVCache):
            self.cache.state = (*rows, position, 0, self.size, held)
        else:
            self.cache.state = (*rows, position, self.size, position - held)

    def mark(self) -> Any:
        # Decoding writes in place, but not into arrays that are referred to.
        if self.cache.empty():
            return None
        keys, values, *rest = self.cache.state
        return keys[...], values[...], *rest

    def rewind(self, mark: Any) -> None:
        if mark is not None:
            keys, values, *rest = mark
            self.cache.state = (keys[...], values[...], *rest)

    def arrays(self) -> Iterator[mx.array]:
        yield from (a for a in self.cache.state[:2] if a is not None)

    def _ordered(self) -> tuple[mx.array, mx.array]:
        """Return keys and values of all held positions, oldest first."""
        keys, values = self.cache.state[:2]
        if not isinstance(self.cache, RotatingKVCache):
            stop = self.cache.offset - self.cache.start_position
            return keys[..., :stop, :], values[..., :stop, :]
        offset, keep, _, index = self.cache.state[2:]
        if keep:
            raise ModelError("windows that keep their first tokens cannot be restored")

        def order(rows: mx.array) -> mx.array:
            if index == rows.shape[2]:
                return rows
            if index < offset:
                return mx.concatenate(
                    [rows[..., index:, :], rows[..., :index, :]], axis=2
                )
            return rows[..., :index, :]

        return order(keys), order(values)

    def _whole(self, rows: mx.array) -> mx.array:
        """Return the last rows of a window, filled up in front."""
        rows = rows[..., -self.size :, :]
        missing = self.size - rows.shape[2]
        if missing:
            rows = mx.pad(rows, [(0, 0), (0, 0), (missing, 0), (0, 0)])
        return mx.contiguous(rows)


class StateCache(CacheView):
    """Recurrent state: arrays that every step replaces as a whole."""

    def __init__(self, cache: ArraysCache) -> None:
        self.cache = cache

    def snapshot(self, mark: Snapshot | None = None) -> Snapshot:
        """Return the state, now or at a mark.

        It is a reference, unless more than the state hangs on an array: a slice would
        keep the activations of a whole chunk alive.
        """
        arrays = self.mark() if mark is None else mark
        return tuple(a if a is None else mx.contiguous(a) for a in arrays)

    def restore(self, snapshot: Snapshot) -> None:
        """Put a state back."""
        self.cache.state = (list(snapshot), None, None)

    def mark(self) -> Snapshot:
        return tuple(self.cache.state[0])

    def rewind(self, mark: Snapshot) -> None:
        self.restore(mark)

    def arrays(self) -> Iterator[mx.array]:
        yield from (a for a in self.cache.state[0] if a is not None)


class _Kept:
    """Keeps all rows beside the window, so that it can be cut at any token."""

    kept: list[TokenRows]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        self.kept.append(TokenRows(keys, values))
        return super().update_and_fetch(keys, values)  # type: ignore[misc]


class _KeptRotating(_Kept, RotatingKVCache):
    pass


class _KeptChunked(_Kept, ChunkedKVCache):
    pass


class KeptWindow(TokenCache):
    """Rows of every position of a window layer."""

    def __init__(self, cache: Any) -> None:
        super().__init__(cache)
        self.cache.kept = []
        self._window = WindowCache(cache)

    @property
    def mergeable(self) -> bool:
        return False  # a batch keeps a window only

    def rows(self) -> TokenRows | None:
        if not self.cache.kept:
            return None
        rows = TokenRows.joined(self.cache.kept)
        self.cache.kept = [rows]
        return rows

    def append(self, rows: TokenRows) -> None:
        """Rebuild the window from its last rows."""
        before = self.rows()
        kept = TokenRows.joined([rows] if before is None else [before, rows])
        position = kept.keys.shape[2]
        window = kept.part(max(position - self._window.size, 0), position)
        self._window.restore((window.keys, window.values), position)
        self.cache.kept = [kept]

    def mark(self) -> Any:
        return list(self.cache.kept), self._window.mark()

    def rewind(self, mark: Any) -> None:
        kept, window = mark
        self.cache.kept = list(kept)
        self._window.rewind(window)

    def arrays(self) -> Iterator[mx.array]:
        for rows in self.cache.kept:
            yield from (rows.keys, rows.values)
        yield from self._window.arrays()


def with_windows(caches: Sequence[Any], windows: Windows) -> list[Any]:
    """Return mlx-lm's fresh caches; windows keep all tokens if ``windows`` says so."""
    return [_with_windows(cache, windows) for cache in caches]


def _with_windows(cache: Any, windows: Windows) -> Any:
    if type(cache) is CacheList:
        return CacheList(*with_windows(cache.caches, windows))
    if windows is Windows.TOKENS and type(cache) is RotatingKVCache:
        return _KeptRotating(cache.max_size, cache.keep)  # type: ignore[no-untyped-call]
    if windows is Windows.TOKENS and type(cache) is ChunkedKVCache:
        return _KeptChunked(cache.chunk_size)  # type: ignore[no-untyped-call]
    return cache


def flatten(caches: Sequence[Any]) -> Iterator[CacheView]:
    """Yield what can be stored of each cache, the parts of lists one by one.

    Raises:
        ModelError: a cache of an unknown class.
    """
    for cache in caches:
        if type(cache) is CacheList:
            yield from flatten(cache.caches)
        elif isinstance(cache, _Kept):
            yield KeptWindow(cache)
        elif (kind := _KINDS.get(type(cache))) is not None:
            yield kind(cache)
        else:
            raise ModelError(
                f"keeps a {type(cache).__name__}, which mlxlab cannot restore; it "
                f"restores {', '.join(sorted(c.__name__ for c in _KINDS))} and lists "
                "of them"
            )


_KINDS: dict[type, Any] = {
    KVCache: TokenCache,
    ConcatenateKVCache: ConcatenatedCache,
    RotatingKVCache: WindowCache,
    ChunkedKVCache: WindowCache,
    ArraysCache: StateCache,
}
