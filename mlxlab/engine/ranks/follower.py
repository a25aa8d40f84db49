"""Ranks above 0: carry out the calls of rank 0 on their part of the model."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.generate import generation_stream

from mlxlab.engine.engine import Engine
from mlxlab.engine.executor import Executor
from mlxlab.engine.loading import LoadedModel, Loader
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
    Stop,
    Store,
    digest_of,
)
from mlxlab.engine.ranks.ranks import Ranks
from mlxlab.engine.samplers import greedy
from mlxlab.errors import IntegrityError, ModelError
from mlxlab.models.folder import find_model

__all__ = ["Follower"]


class Follower:
    """Carries out what rank 0 decides, on this rank's part.

    Attributes:
        engines: by rank 0's numbers.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._loader = Loader(ranks.group)
        # Zeros are added to the ids that rank 0 samples.
        self._executor = Executor(lambda ids: ranks.sum(mx.zeros_like(ids) * ids))
        self._models: dict[int, LoadedModel] = {}
        self.engines: dict[int, Engine] = {}

    def run(self) -> None:
        """Follow rank 0 until it ends."""
        while not isinstance(message := self._ranks.inbox.get(), Stop):
            try:
                with self._ranks.waiting(), mx.stream(generation_stream):
                    self.carry_out(message)
            except Exception as error:
                self._ranks.fail_by(error)

    def carry_out(self, message: Message) -> None:
        """Make the calls of one message.

        Raises:
            MlxlabError: this rank cannot, or decides otherwise.
        """
        match message:
            case Load():
                self._load(message)
            case Open():
                self._open(message)
            case Keep(models, engines):
                self._models = {n: self._models[n] for n in models}
                self.engines = {n: self.engines[n] for n in engines}
                mx.clear_cache()
            case _:
                self._compute(message)

    def _load(self, message: Load) -> None:
        folder = find_model(message.name)
        if folder.digest != message.digest:
            raise ModelError(
                f"model {message.name}: its files are not those of rank 0; "
                "copy them to all machines"
            )
        self._models[message.model] = self._loader.load(folder)

    def _open(self, message: Open) -> None:
        loaded = self._models[message.model]
        if loaded.layout != message.layout:
            raise IntegrityError(
                f"model {loaded.folder.name}: a part of another size than on rank 0"
            )
        engine = self._loader.open(
            loaded, message.strategy, chunk=message.chunk, chunk_s=float("inf")
        )
        engine.batched = message.batched
        self.engines[message.engine] = engine

    def _compute(self, message: Message) -> None:
        executor = self._executor
        begun = executor.computations
        match message:
            case Begin():
                engine = self.engines[message.engine]
                made = executor.begin(engine, message.prompt.prompt())
                _compare(engine, digest_of(made.prefill.plan), message.plan)
            case Compute(number, chunk):
                begun[number].prefill.given = chunk
                executor.compute(begun[number])
            case Join(number, batch):
                joined = None if batch is None else executor.batches[batch]
                executor.join(begun[number], greedy, batch=joined)
            case Step(batch):
                executor.step(executor.batches[batch])
            case Store(number, length, use, commit):
                own = begun[number]
                done = executor.store(own, length, use)
                _compare(own.engine, digest_of(done), commit)
            case End(number, answer, use, commit):
                own = begun[number]
                done = executor.end(own, answer, use)
                _compare(own.engine, digest_of(done), commit)
            case _:
                raise IntegrityError(f"rank 0 sent {message.kind}")


def _compare(engine: Engine, own: str, other: str) -> None:
    if own != other:
        raise IntegrityError(
            f"{engine.strategy.name}: decided otherwise than on rank 0; a strategy "
            "must not depend on clocks, chance or the order of sets"
        )
