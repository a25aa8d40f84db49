"""Answers of one model that decode together: one token each at every step.

Everything here evaluates arrays and must run on the worker thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, StopSequences, generation_stream
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache

from mlxlab.engine.layer_caches import Snapshot
from mlxlab.engine.samplers import LogitsProcessor, Sampler
from mlxlab.engine.working_cache import WorkingCache

__all__ = ["Batch"]

_ENDLESS = 2**31


class Batch:
    """Decodes on mlx-lm's batched caches.

    A prompt is computed by itself, so nothing is padded on the right, which mlx-lm gets
    wrong for ten kinds of models. One answer alone stays on its own caches: decoding
    there costs what it costs without a batch.

    As in mlx-lm, the model is a step ahead: a token that :meth:`step` returns has been
    fed already.

    Args:
        model: of all answers.
        shared: whether several answers may join.
    """

    def __init__(self, model: Any, *, shared: bool = False) -> None:
        self._model = model
        self._shared = shared
        self._running: Any = None
        self._members: dict[int, _Member] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._members)

    def accepts(self, model: Any) -> bool:
        """Whether answers of a model may join."""
        return self._shared and self._model is model

    def add(
        self,
        caches: WorkingCache,
        token: int,
        sampler: Sampler,
        processors: Sequence[LogitsProcessor] = (),
    ) -> int:
        """Let an answer join.

        Args:
            caches: hold the whole prompt but its last token.
            token: the prompt's last.
            sampler: chooses the answer's tokens.
            processors: applied to the logits before, in order.

        Returns:
            A number that names the answer.
        """
        number = next(self._numbers)
        member = _Member(caches, _Guard(sampler, processors))
        with mx.stream(generation_stream):
            member.advance(_states(caches.layers))
            joining = GenerationBatch(
                self._model,
                [number],
                mx.array([token]),
                list(caches.layers),
                [[]],
                [member.guard.sample],
                member.guard.sample,
                [[member.guard.process] if processors else []],
                [StopSequences()],
                [_ENDLESS],
            )
            if self._running is None:
                self._running = joining
            else:
                self._join(joining, member)
        self._members[number] = member
        return number

    def _join(self, joining: Any, member: _Member) -> None:
        """Merge a layer at a time, so that only one layer is held twice."""
        layers = self._running.prompt_cache
        if len(self) == 1:
            (other,) = self._members.values()
            other.caches.release()
        member.caches.release()
        for i, joins in enumerate(joining.prompt_cache):
            if len(self) == 1:
                layers[i] = layers[i].merge([layers[i]])
            layers[i].extend(joins.merge([joins]))
            joining.prompt_cache[i] = None
            mx.eval(_arrays(layers[i]))
        self._running.prompt_cache, joining.prompt_cache = [], []
        self._running.extend(joining)
        self._running.prompt_cache = layers

    def step(self) -> dict[int, int | Exception]:
        """Compute a step and return each answer's next token, by number.

        Instead of a token, an answer has the exception that its sampler or a processor
        raised. It has to be removed.
        """
        if self._running is None:
            return {}
        with mx.stream(generation_stream):
            before = _states(self._running.prompt_cache)
            for row, number in enumerate(self._running.uids):
                self._members[number].advance(before, row)
            found = self._running.next()
        return {
            answer.uid: self._members[answer.uid].guard.error or answer.token
            for answer in found
        }

    def caches(self, number: int) -> WorkingCache:
        """Return the caches of an answer as they are now: a copy if it is not alone."""
        member = self._members[number]
        if len(self) == 1:
            return member.settled(member.caches)
        row = self._running.uids.index(number)
        layers = [_extract(layer, row) for layer in self._running.prompt_cache]
        return member.settled(WorkingCache(layers))

    def remove(self, number: int) -> WorkingCache:
        """Let an answer leave, and return its caches."""
        if len(self) == 1:
            caches = self.caches(number)
            self._members.clear()
            self._running = None
            return caches
        rest = [i for i, uid in enumerate(self._running.uids) if uid != number]
        left = self._split(self._running.uids.index(number), rest)
        member = self._members.pop(number)
        layers, self._running.prompt_cache = self._running.prompt_cache, []
        self._running.filter(rest)
        self._running.prompt_cache = layers
        if len(rest) == 1:
            (other,) = self._members.values()
            other.caches = WorkingCache(layers)
        return member.settled(WorkingCache(left))

    def _split(self, row: int, rest: list[int]) -> list[Any]:
        """Take a row out of all caches, a layer at a time.

        Args:
            row: leaves.
            rest: stay; a single one gets plain caches.

        Returns:
            The caches of the row.
        """
        layers, left = self._running.prompt_cache, []
        for i, layer in enumerate(layers):
            left.append(_extract(layer, row))
            if len(rest) == 1:
                layers[i] = _extract(layer, rest[0])
            else:
                layer.filter(rest)
            mx.eval(_arrays(left[i]), _arrays(layers[i]))
        return left


_States: TypeAlias = list[Snapshot]


@dataclass(slots=True)
class _Member:
    """One answer of a batch.

    Attributes:
        caches: of an answer alone; older than the batch otherwise.
        before: the states in front of the last step, of all rows.
        row: of this answer in ``before``.
    """

    caches: WorkingCache
    guard: _Guard
    position: int = field(init=False)
    before: _States = field(init=False, default_factory=list)
    row: int = 0

    def __post_init__(self) -> None:
        self.position = self.caches.position

    def advance(self, before: _States, row: int = 0) -> None:
        """Count a step."""
        self.position += 1
        self.before, self.row = before, row

    def settled(self, caches: WorkingCache) -> WorkingCache:
        """Tell this answer's caches where they are."""
        own = slice(self.row, self.row + 1)
        states = [
            tuple(array if array is None else array[own] for array in state)
            for state in self.before
        ]
        caches.settle(self.position, states)
        return caches


class _Guard:
    """Runs one answer's sampler and processors; an exception ends that answer only."""

    def __init__(self, sampler: Sampler, processors: Sequence[LogitsProcessor]) -> None:
        self.error: Exception | None = None
        self._sampler = sampler
        self._processors = processors

    def process(self, tokens: mx.array, logits: mx.array) -> mx.array:
        try:
            for processor in self._processors:
                logits = processor(tokens, logits)
        except Exception as error:
            self.error = self.error or error
        return logits

    def sample(self, logprobs: mx.array) -> mx.array:
        if self.error is None:
            try:
                return self._sampler(logprobs).astype(mx.uint32)
            except Exception as error:
                self.error = error
        return mx.argmax(logprobs, axis=-1)


def _states(layers: Sequence[Any]) -> _States:
    """Return the states of all recurrent layers, of every row."""
    return [tuple(cache.state[0]) for cache in _recurrent(layers)]


def _recurrent(layers: Sequence[Any]) -> Iterator[ArraysCache]:
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from _recurrent(layer.caches)
        elif isinstance(layer, ArraysCache):
            yield layer


def _arrays(layer: Any) -> list[mx.array]:
    """Return the arrays of a cache, batched or not."""
    if isinstance(layer, CacheList):
        return [array for part in layer.caches for array in _arrays(part)]
    held = layer.cache if isinstance(layer, ArraysCache) else (layer.keys, layer.values)
    return [array for array in held if array is not None]


def _extract(layer: Any, row: int) -> Any:
    """Return one row of a batched cache as mlx-lm's plain cache."""
    if isinstance(layer, CacheList):
        return CacheList(*(_extract(part, row) for part in layer.caches))
    if isinstance(layer, ArraysCache):
        plain = ArraysCache(len(layer.cache))
        plain.cache = [a if a is None else a[row : row + 1] for a in layer.cache]
        return plain
    if layer.empty():
        return KVCache()
    return layer.extract(row)
