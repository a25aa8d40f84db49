"""Replay through a real model, in process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlxlab import blas
from mlxlab.engine import Engine, Worker, device_name, load_model
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Prompt
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Outcome, Progress
from mlxlab.strategies import Strategy, make_strategy

__all__ = ["LiveModel", "LiveReplay", "live_model"]


class LiveReplay:
    """Drives one engine on its worker thread.

    Args:
        worker: the thread that owns the engine's model.
        engine: with a fresh strategy.
        progress: see :data:`mlxlab.replay.simulator.Progress`.
    """

    def __init__(
        self,
        worker: Worker,
        engine: Engine,
        progress: Progress | None = None,
    ) -> None:
        self.worker = worker
        self.engine = engine
        self.progress = progress

    def replay(self, request: RenderedRequest) -> Outcome:
        done = self.worker.call(
            self.engine.replay, request.prompt, request.answer, self.progress
        )
        return Outcome(
            reused_tokens=done.plan.reused,
            stored_bytes=self.engine.store.nbytes,
            evicted=done.commit.evicted,
            restore_s=done.restore_s,
            prefill_s=done.prefill_s,
            ttft_s=done.ttft_s,
        )


class LiveModel:
    """A model in memory, from which replayers with an empty cache are made."""

    def __init__(self, folder: ModelFolder, worker: Worker, *, chunk: int) -> None:
        self.folder = folder
        self.worker = worker
        self.chunk = chunk
        self.model = worker.call(load_model, folder)
        # The first products of a process pay for thread pools and kernels.
        warm_up = Engine(self.model, make_strategy("none"))
        worker.call(warm_up.replay, Prompt.of(range(64)), np.empty(0, np.int32))

    def replayer(
        self, strategy: Strategy, progress: Progress | None = None
    ) -> LiveReplay:
        """A target with a store of its own."""
        return LiveReplay(self.worker, self.engine(strategy), progress)

    def engine(
        self, strategy: Strategy, *, model: Any = None, chunk: int | None = None
    ) -> Engine:
        """An engine with a store of its own.

        Args:
            strategy: fresh.
            model: a variant of this one to compute with instead.
            chunk: tokens computed at a time, if other than usual.
        """
        return Engine(
            self.model if model is None else model,
            strategy,
            chunk=chunk or self.chunk,
            window=self.folder.window,
        )

    def describe(self) -> dict[str, Any]:
        """Device, BLAS and chunk size, for a manifest."""
        return {
            "device": device_name(),
            "blas": str(blas.preload()),
            "chunk": self.chunk,
        }


@contextmanager
def live_model(folder: ModelFolder, *, chunk: int = 2048) -> Iterator[LiveModel]:
    """Load a model on a worker thread of its own and end the thread afterwards.

    Raises:
        ModelError: the model cannot be loaded or its cache cannot be cut.
    """
    with Worker() as worker:
        yield LiveModel(folder, worker, chunk=chunk)
