"""Rank 0: whatever it computes, it has the other ranks compute as well.

A call in which ranks wait for each other is sent before it is made. All others are sent
afterwards, with a digest of what the strategy decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from weakref import WeakKeyDictionary

import mlx.core as mx
from mlx_lm.generate import generation_stream

from mlxlab.engine.batch import Batch
from mlxlab.engine.disk_store import DiskStore
from mlxlab.engine.engine import Engine, PrefillProgress
from mlxlab.engine.executor import Computation, Executor
from mlxlab.engine.loading import LoadedModel, Loader
from mlxlab.engine.memory import Memory
from mlxlab.engine.ranks.messages import (
    Begin,
    Compute,
    End,
    Join,
    Keep,
    Load,
    Message,
    Open,
    Step,
    Store,
    WirePrompt,
    digest_of,
)
from mlxlab.engine.ranks.ranks import Ranks
from mlxlab.engine.samplers import LogitsProcessor, Sampler
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Prompt
from mlxlab.strategies import Commit, Strategy
from mlxlab.strategies.use import Use

__all__ = ["LeadingExecutor", "LeadingLoader"]


class LeadingLoader(Loader):
    """Loads models and opens engines on all ranks.

    What rank 0 holds no longer, the others drop.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks.group)
        self.ranks = ranks
        self.models: WeakKeyDictionary[LoadedModel, int] = WeakKeyDictionary()
        self.engines: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()
        self._numbers = count()
        self._kept = Keep([], [])

    def load(self, folder: ModelFolder) -> LoadedModel:
        """Load each rank's part of a model.

        Raises:
            ModelError: see :meth:`Loader.load`.
        """
        self.drop()
        number = next(self._numbers)
        with together(self.ranks, Load(number, folder.name, folder.digest)):
            loaded = super().load(folder)
        self.models[loaded] = number
        return loaded

    def open(
        self,
        loaded: LoadedModel,
        strategy: str,
        *,
        chunk: int,
        chunk_s: float,
        memory: Memory | None = None,
        disk: Callable[[Strategy], DiskStore | None] = lambda strategy: None,
    ) -> Engine:
        """Open an engine on all ranks.

        Raises:
            ModelError: see :meth:`Loader.open`.
        """
        self.drop()
        engine = super().open(
            loaded, strategy, chunk=chunk, chunk_s=chunk_s, memory=memory, disk=disk
        )
        number, model = next(self._numbers), self.models[loaded]
        layout, batched = loaded.layout, loaded.batched
        self.ranks.send(Open(number, model, strategy, chunk, layout, batched))
        self.engines[engine] = number
        return engine

    def drop(self) -> None:
        """Have the other ranks drop what this one has dropped."""
        kept = Keep(sorted(self.models.values()), sorted(self.engines.values()))
        if kept != self._kept:
            self._kept = kept
            self.ranks.send(kept)


class LeadingExecutor(Executor):
    """Computes on all ranks; samples on this one.

    Args:
        loader: has opened the engines.
    """

    def __init__(self, loader: LeadingLoader) -> None:
        super().__init__(loader.ranks.sum)
        self._loader = loader
        self._ranks = loader.ranks

    def begin(self, engine: Engine, prompt: Prompt) -> Computation:
        made = super().begin(engine, prompt)
        self._loader.drop()
        number, plan = self._loader.engines[engine], digest_of(made.prefill.plan)
        self._ranks.send(Begin(number, WirePrompt.of(prompt), plan))
        return made

    def compute(self, own: Computation) -> list[PrefillProgress]:
        chunk = own.engine.next_chunk(own.position)
        own.prefill.given = chunk
        with together(self._ranks, Compute(own.number, chunk)):
            return super().compute(own)

    def join(
        self,
        own: Computation,
        sampler: Sampler,
        processors: Sequence[LogitsProcessor] = (),
        batch: Batch | None = None,
    ) -> None:
        index = None if batch is None else self.batches.index(batch)
        with together(self._ranks, Join(own.number, index)):
            super().join(own, sampler, processors, batch)

    def step(self, batch: Batch) -> dict[int, int | Exception]:
        with together(self._ranks, Step(self.batches.index(batch))):
            return super().step(batch)

    def store(self, own: Computation, length: int, use: Use) -> Commit:
        commit = super().store(own, length, use)
        self._ranks.send(Store(own.number, length, use, digest_of(commit)))
        return commit

    def end(self, own: Computation, answer: Sequence[int] | None, use: Use) -> Commit:
        commit = super().end(own, answer, use)
        ids = None if answer is None else list(answer)
        self._ranks.send(End(own.number, ids, use, digest_of(commit)))
        return commit


@contextmanager
def together(ranks: Ranks, message: Message) -> Iterator[None]:
    """Send a message, then make the call in which ranks wait for each other.

    An error that the others need not share ends all processes.
    """
    ranks.send(message)
    # On one stream, mlx keeps the order of what ranks add up.
    with ranks.waiting(), mx.stream(generation_stream):
        try:
            yield
        except MlxlabError:
            raise
        except Exception as error:
            ranks.fail_by(error)
            raise
