"""Carries out what a runner decides: restores, computes, decodes and stores.

Everything here evaluates arrays and must run on the worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import mlx.core as mx

from mlxlab.engine.batch import Batch
from mlxlab.engine.samplers import LogitsProcessor, Sampler
from mlxlab.prompt import Prompt
from mlxlab.strategies import Commit
from mlxlab.strategies.use import Use

if TYPE_CHECKING:
    from mlxlab.engine.engine import Engine, Prefill, PrefillProgress

__all__ = ["Computation", "Executor", "Share"]

Share: TypeAlias = Callable[[mx.array], mx.array]
"""Maps the ids that this process has sampled to those that are used, lazily."""


@dataclass(eq=False, slots=True)
class Computation:
    """A prompt and its answer while they are computed.

    Attributes:
        number: names it; an executor counts them.
        chunks: computes the rest of the prompt.
        layers: caches of the model.
        batch: that its answer is decoded in, as ``row``; None before.
    """

    number: int
    engine: Engine
    prefill: Prefill
    chunks: Iterator[PrefillProgress] = field(repr=False)
    layers: int
    batch: Batch | None = None
    row: int = -1

    @property
    def position(self) -> int:
        """Tokens of the prompt that are computed."""
        return self.prefill.position

    @property
    def remaining(self) -> int:
        """Tokens to compute before the prompt's last one."""
        return max(len(self.prefill.prompt) - 1 - self.position, 0)


class Executor:
    """Computes prompts one by one, and answers in batches.

    Args:
        share: see :data:`Share`; the sampled ids themselves by default.

    Attributes:
        batches: in order of creation.
        computations: those that have begun and not ended, by number.
    """

    def __init__(self, share: Share = lambda ids: ids) -> None:
        self.batches: list[Batch] = []
        self.computations: dict[int, Computation] = {}
        self._share = share
        self._numbers = count()

    def begin(self, engine: Engine, prompt: Prompt) -> Computation:
        """Plan a prompt and hold what the plan restores.

        Raises:
            ModelError: the prompt is longer than the model's window.
        """
        prefill = engine.begin(prompt)
        number = next(self._numbers)
        layers = len(prefill.caches.layers)
        made = Computation(number, engine, prefill, engine.fill(prefill), layers)
        self.computations[number] = made
        return made

    def compute(self, own: Computation) -> list[PrefillProgress]:
        """Restore or compute a chunk; also finish, if no token remains."""
        done = next(own.chunks, None)
        found = [] if done is None else [done]
        return found if own.remaining else [*found, *own.chunks]

    def alike(self, own: Computation) -> Iterator[Batch]:
        """Yield the batches that the answer of a whole prompt may join."""
        if own.engine.batched and own.prefill.caches.mergeable:
            yield from (b for b in self.batches if b.accepts(own.engine.model))

    def join(
        self,
        own: Computation,
        sampler: Sampler,
        processors: Sequence[LogitsProcessor] = (),
        batch: Batch | None = None,
    ) -> None:
        """Let the answer of a whole prompt begin.

        Args:
            own: its prompt is computed.
            sampler: chooses tokens.
            processors: applied to the logits before the sampler, in order.
            batch: one of :meth:`alike`; a new one if None.
        """
        engine, caches = own.engine, own.prefill.caches
        if batch is None:
            shared = engine.batched and caches.mergeable
            batch = Batch(engine.model, shared=shared, share=self._share)
            self.batches.append(batch)
        last = int(own.prefill.prompt.tokens[-1])
        own.row = batch.add(caches, last, sampler, processors)
        own.batch = batch

    def step(self, batch: Batch) -> dict[int, int | Exception]:
        """Decode a token of each answer; by row, see :meth:`Batch.step`.

        If it raises, its answers are in no batch any more.
        """
        try:
            return batch.step()
        except Exception:
            self.batches.remove(batch)
            for own in self.computations.values():
                if own.batch is batch:
                    own.batch = None
            raise

    def store(self, own: Computation, length: int, use: Use) -> Commit:
        """Cache the first tokens of a prompt before its answer has ended."""
        caches = own.prefill.caches
        if own.batch is not None:
            caches = own.batch.caches(own.row)
        return own.engine.commit(own.prefill, length=length, caches=caches, use=use)

    def end(self, own: Computation, answer: Sequence[int] | None, use: Use) -> Commit:
        """Let a computation go.

        Args:
            own: is used no more.
            answer: its ids, to be cached with the prompt; None to cache nothing.
            use: the request, for the eviction policy.
        """
        del self.computations[own.number]
        if own.batch is not None:
            own.prefill.caches = own.batch.remove(own.row)
            if not own.batch:
                self.batches.remove(own.batch)
        if answer is None:
            return Commit()
        return own.engine.commit(own.prefill, answer, use=use)
