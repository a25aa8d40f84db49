"""Stores rows and checkpoints by handle, and applies the commits of a strategy.

Every array is evaluated here, so all calls must run on the worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlxlab.engine.layer_caches import TokenRows
from mlxlab.engine.packed_rows import PackedRows, StoredRows, pack_rest, unpack
from mlxlab.engine.rope import kept
from mlxlab.engine.working_cache import Checkpoint, WorkingCache
from mlxlab.errors import IntegrityError
from mlxlab.models.kv_bits import COMPUTED, KVBits
from mlxlab.strategies import Commit, Cut, Handle, Plan, Put, Span, Tier

__all__ = ["Held", "KVStore", "Move", "Packed"]

Move: TypeAlias = Callable[[int, mx.array, int], mx.array]
"""Maps a layer, its stored keys and a shift to the moved keys.

Keys have shape ``[1, kv_heads, positions, head_dim]``; the shift is in positions.
"""


Rows: TypeAlias = tuple[StoredRows | None, ...]
"""Rows of one sequence, one for each cache; None for a cache that stays empty."""

Packed: TypeAlias = Sequence[tuple[int, tuple[PackedRows | None, ...]]]
"""First positions of rows that are packed already, and the rows, in order."""


class Held:
    """Rows and checkpoints by handle, to be restored.

    Arrays are immutable. So what one plan holds stays as it is until it is restored,
    whatever is dropped meanwhile.

    Args:
        entries: rows from memory.
        checkpoints: from either tier, by the handles that are resumed from.
        loaded: rows from disk.
    """

    def __init__(
        self,
        entries: dict[Handle, Rows] | None = None,
        checkpoints: dict[Handle, Checkpoint] | None = None,
        loaded: Mapping[Handle, Rows] = MappingProxyType({}),
    ) -> None:
        self._entries = {} if entries is None else entries
        self._checkpoints = {} if checkpoints is None else checkpoints
        self._loaded = loaded

    def restore(
        self, spans: Iterable[Span], cache: WorkingCache, resume: Handle | None = None
    ) -> None:
        """Append stored positions to ``cache``. The spans must follow on from it.

        Args:
            spans: in order.
            cache: receives the positions.
            resume: the checkpoint behind the last of them.

        Raises:
            IntegrityError: a span or the checkpoint is not held, or leaves a gap.
        """
        spans = list(spans)
        position = cache.position
        for span in spans:
            if span.target != position:
                raise IntegrityError(
                    f"store: {span} does not follow position {position}"
                )
            position += span.length
        held = [self._held(span) for span in spans]
        layers = [
            None
            if rows[0] is None
            else TokenRows.joined(
                [
                    unpack(_part(own, span))
                    for own, span in zip(rows, spans, strict=True)
                ]
            )
            for rows in zip(*held, strict=True)
        ]
        cache.append(layers, position - cache.position)
        if resume is not None:
            cache.resume(self._checkpoint(resume), position)
        cache.evaluate()

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
            like = unpack(self._plain(runs[0][0], i).part(0, 1))
            keys, values = [], []
            if offset:
                before = kept(layer_cache)
                keys, values = [before[0]], [before[1]]
            position = offset
            for run in runs:
                rows = TokenRows.joined(
                    [unpack(_part(self._plain(span, i), span)) for span in run]
                )
                hole = run[0].target - position
                keys += [_zeros(like.keys, hole), move(i, rows.keys, run[0].shift)]
                values += [_zeros(like.values, hole), rows.values]
                position = run[-1].target + run[-1].length
            keys.append(_zeros(like.keys, length - position))
            values.append(_zeros(like.values, length - position))
            layer_cache.state = (_joined(keys), _joined(values), offset)
        mx.eval([(c.keys, c.values) for c in cache])

    def packed(self, spans: Iterable[Span]) -> Packed:
        """Return what spans hold packed in their old places, to be stored as it is."""
        found = []
        for span in spans:
            parts = (own and _part(own, span) for own in self._held(span))
            rows = tuple(own if isinstance(own, PackedRows) else None for own in parts)
            if not span.shift and any(rows):
                found.append((span.target, rows))
        return found

    def _checkpoint(self, handle: Handle) -> Checkpoint:
        if handle not in self._checkpoints:
            raise IntegrityError(f"store: checkpoint {handle} is not held")
        return self._checkpoints[handle]

    def _held(self, span: Span) -> Rows:
        held = self._loaded if span.tier is Tier.DISK else self._entries
        if span.handle not in held:
            raise IntegrityError(f"store: handle {span.handle} planned but not held")
        return held[span.handle]

    def _plain(self, span: Span, layer: int) -> StoredRows:
        rows = self._held(span)[layer]
        if rows is None:
            raise IntegrityError(f"store: layer {layer} of {span} is empty")
        return rows


class KVStore(Held):
    """Maps each handle to rows of all layers, or to a checkpoint.

    Args:
        bits: of keys and values at rest; state and windows stay as they are.
    """

    def __init__(self, bits: KVBits = COMPUTED) -> None:
        super().__init__()
        self._bits = bits
        self._lengths: dict[Handle, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"KVStore({len(self)} handles, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Size of all stored arrays in bytes."""
        rows = sum(
            array.nbytes
            for layers in self._entries.values()
            for layer in layers
            if layer is not None
            for array in layer.arrays()
        )
        return rows + sum(
            array.nbytes
            for checkpoint in self._checkpoints.values()
            for snapshot in checkpoint
            for array in snapshot
            if array is not None
        )

    def apply(
        self,
        commit: Commit,
        cache: WorkingCache,
        taken: Mapping[int, Checkpoint] = MappingProxyType({}),
        packed: Packed = (),
    ) -> None:
        """Drop, cut and store entries as ``commit`` says; puts refer to ``cache``.

        Args:
            commit: the changes.
            cache: the caches of the computed sequence.
            taken: checkpoints taken on the way, by position.
            packed: what the sequence was restored from, if that is in fewer bits.

        Raises:
            IntegrityError: a handle is unknown or already held, or a range lies outside
                its sequence.
        """
        for handle in commit.drop:
            if self._entries.pop(handle, None) is None:
                raise IntegrityError(f"store: handle {handle} dropped but not held")
            del self._lengths[handle]
        for handle in commit.forget:
            if self._checkpoints.pop(handle, None) is None:
                raise IntegrityError(f"store: checkpoint {handle} is not held")
        for cut in commit.cut:
            self._cut(cut)
        rows = cache.rows() if commit.put else []
        for put in commit.put:
            if put.handle in self._entries:
                raise IntegrityError(f"store: handle {put.handle} is already held")
            if not 0 <= put.start < put.stop <= cache.position:
                raise IntegrityError(f"store: {put} is outside the computed sequence")
            stored = tuple(
                own and self._at_rest(own, i, put, packed) for i, own in enumerate(rows)
            )
            self._hold(put.handle, stored, put.stop - put.start)
        for keep in commit.keep:
            if keep.handle in self._checkpoints:
                raise IntegrityError(f"store: checkpoint {keep.handle} is held already")
            found = taken.get(keep.position) or cache.checkpoint(keep.position)
            self._checkpoints[keep.handle] = found

    def hold(
        self,
        plan: Plan,
        loaded: Mapping[Handle, Rows] = MappingProxyType({}),
        checkpoint: Checkpoint | None = None,
    ) -> Held:
        """Return what a plan restores.

        Args:
            plan: the plan.
            loaded: the rows that it takes from disk.
            checkpoint: the one that it resumes from, if that comes from disk.

        Raises:
            IntegrityError: a span or the checkpoint is not held.
        """
        memory = (span for span in plan.spans if span.tier is Tier.MEMORY)
        entries = {span.handle: self._held(span) for span in memory}
        if plan.resume is None:
            return Held(entries, loaded=loaded)
        found = checkpoint or self._checkpoint(plan.resume)
        return Held(entries, {plan.resume: found}, loaded)

    def _at_rest(
        self, rows: TokenRows, layer: int, put: Put, packed: Packed
    ) -> StoredRows:
        """Return the rows of a layer as they are stored, as views where they can be."""
        if self._bits.is_full:
            return rows.part(put.start, put.stop)
        known = [(first, own[layer]) for first, own in packed]
        held = [(first, own) for first, own in known if own is not None]
        return pack_rest(rows, held, put.start, put.stop, self._bits)

    def _hold(self, handle: Handle, rows: Rows, length: int) -> None:
        """Copy rows of this many positions."""
        copied = tuple(own and own.copy() for own in rows)
        mx.eval([[*own.arrays()] for own in copied if own is not None])
        self._entries[handle] = copied
        self._lengths[handle] = length

    def _cut(self, cut: Cut) -> None:
        length = self._lengths.get(cut.handle, 0)
        if not 0 <= cut.start < cut.stop <= length:
            raise IntegrityError(f"store: {cut} is outside the held sequence")
        rows = self._entries[cut.handle]
        parts = tuple(own and own.part(cut.start, cut.stop) for own in rows)
        self._hold(cut.handle, parts, cut.stop - cut.start)


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


def _part(rows: StoredRows | None, span: Span) -> StoredRows:
    if rows is None:
        raise IntegrityError(f"store: {span} has no rows where others have some")
    return rows.part(span.source, span.source + span.length)


def _joined(arrays: list[mx.array]) -> mx.array:
    return arrays[0] if len(arrays) == 1 else mx.concatenate(arrays, axis=2)
