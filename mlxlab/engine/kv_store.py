"""Stores keys and values by handle and applies the commits of a strategy.

Every array is evaluated here, so all calls must run on the worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlxlab.engine.rope import kept
from mlxlab.errors import IntegrityError
from mlxlab.strategies import Commit, Cut, Handle, Span

__all__ = ["KVStore", "Move"]

Move: TypeAlias = Callable[[int, mx.array, int], mx.array]
"""Maps a layer, its stored keys and a shift to the moved keys.

Keys have shape ``[1, kv_heads, positions, head_dim]``; the shift is in positions.
"""


@dataclass(frozen=True, slots=True)
class Layer:
    """Keys and values of some positions in one layer.

    Both have shape ``[1, kv_heads, positions, head_dim]``. Keys are stored after
    mlx-lm's rotary embedding for their position.
    """

    keys: mx.array
    values: mx.array


class KVStore:
    """Maps each handle to the keys and values of all layers."""

    def __init__(self) -> None:
        self._entries: dict[Handle, tuple[Layer, ...]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"KVStore({len(self)} handles, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Size of all stored arrays in bytes."""
        return sum(
            layer.keys.nbytes + layer.values.nbytes
            for layers in self._entries.values()
            for layer in layers
        )

    def apply(self, commit: Commit, cache: Sequence[KVCache]) -> None:
        """Drop, cut and store entries as ``commit`` says; puts refer to ``cache``.

        Raises:
            IntegrityError: a handle is unknown or already held, or a range lies outside
                its sequence.
        """
        for handle in commit.drop:
            if self._entries.pop(handle, None) is None:
                raise IntegrityError(f"store: handle {handle} dropped but not held")
        for cut in commit.cut:
            self._entries[cut.handle] = self._shortened(cut)
        for put in commit.put:
            if put.handle in self._entries:
                raise IntegrityError(f"store: handle {put.handle} is already held")
            if not 0 <= put.start < put.stop <= cache[0].offset:
                raise IntegrityError(f"store: {put} is outside the computed sequence")
            layers = tuple(_part(*kept(c), put.start, put.stop) for c in cache)
            mx.eval([(layer.keys, layer.values) for layer in layers])
            self._entries[put.handle] = layers

    def restore(self, spans: Iterable[Span], cache: Sequence[KVCache]) -> None:
        """Append stored positions to ``cache``. The spans must follow on from it.

        Raises:
            IntegrityError: a span is not held, or leaves a gap.
        """
        spans = list(spans)
        position = cache[0].offset
        for span in spans:
            if span.target != position:
                raise IntegrityError(
                    f"store: {span} does not follow position {position}"
                )
            position += span.length
        for i, layer_cache in enumerate(cache):
            layers = [(self._held(span)[i], span) for span in spans]
            layer_cache.update_and_fetch(
                _joined([_cut(layer.keys, span) for layer, span in layers]),
                _joined([_cut(layer.values, span) for layer, span in layers]),
            )
        mx.eval([c.state for c in cache])

    def scatter(
        self, spans: Iterable[Span], cache: Sequence[KVCache], length: int, move: Move
    ) -> None:
        """Put stored positions at their targets in caches of ``length`` positions.

        Positions outside the spans are zero until they are computed. The caches'
        offsets do not change.

        Args:
            spans: at least one, in order, all after the caches' offsets.
            cache: one per layer.
            length: positions that the caches hold afterwards.
            move: see :data:`Move`.

        Raises:
            IntegrityError: a span is not held.
        """
        runs = list(_runs(spans))
        for i, layer_cache in enumerate(cache):
            offset = layer_cache.offset
            like = self._held(runs[0][0])[i]
            keys, values = [], []
            if offset:
                before = kept(layer_cache)
                keys, values = [before[0]], [before[1]]
            position = offset
            for run in runs:
                layers = [(self._held(span)[i], span) for span in run]
                moved = _joined([_cut(layer.keys, span) for layer, span in layers])
                hole = run[0].target - position
                keys += [_zeros(like.keys, hole), move(i, moved, run[0].shift)]
                values.append(_zeros(like.values, hole))
                values += [_cut(layer.values, span) for layer, span in layers]
                position = run[-1].target + run[-1].length
            keys.append(_zeros(like.keys, length - position))
            values.append(_zeros(like.values, length - position))
            layer_cache.state = (_joined(keys), _joined(values), offset)
        mx.eval([(c.keys, c.values) for c in cache])

    def _shortened(self, cut: Cut) -> tuple[Layer, ...]:
        layers = self._entries.get(cut.handle, ())
        if not layers or not 0 <= cut.start < cut.stop <= layers[0].keys.shape[2]:
            raise IntegrityError(f"store: {cut} is outside the held sequence")
        shorter = tuple(_part(x.keys, x.values, cut.start, cut.stop) for x in layers)
        mx.eval([(layer.keys, layer.values) for layer in shorter])
        return shorter

    def _held(self, span: Span) -> tuple[Layer, ...]:
        if span.handle not in self._entries:
            raise IntegrityError(f"store: handle {span.handle} planned but not held")
        return self._entries[span.handle]


def _runs(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Group spans that follow each other and have equal shifts."""
    run: list[Span] = []
    for span in spans:
        if run and (run[-1].target + run[-1].length, run[-1].shift) != (
            span.target,
            span.shift,
        ):
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def _zeros(like: mx.array, positions: int) -> mx.array:
    batch, heads, _, dims = like.shape
    return mx.zeros((batch, heads, positions, dims), like.dtype)


def _part(keys: mx.array, values: mx.array, start: int, stop: int) -> Layer:
    # A slice would keep the whole source array alive.
    return Layer(
        mx.contiguous(keys[..., start:stop, :]),
        mx.contiguous(values[..., start:stop, :]),
    )


def _cut(array: mx.array, span: Span) -> mx.array:
    return array[..., span.source : span.source + span.length, :]


def _joined(arrays: list[mx.array]) -> mx.array:
    return arrays[0] if len(arrays) == 1 else mx.concatenate(arrays, axis=2)
