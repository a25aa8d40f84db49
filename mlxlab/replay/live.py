"""Replays requests through a real model, in process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from mlxlab import blas
from mlxlab.engine import (
    DiskFolder,
    DiskStore,
    Engine,
    Loader,
    Worker,
    device_name,
)
from mlxlab.models.folder import ModelFolder
from mlxlab.pace import CHUNK_S
from mlxlab.replay.commits import Commits
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Outcome, Progress
from mlxlab.replay.turns import Schedule
from mlxlab.replay.users import LiveUsers
from mlxlab.strategies import Commit, Strategy
from mlxlab.strategies.use import Use
from mlxlab.unfinished import scratch_folder

__all__ = ["LiveModel", "LiveReplay", "live_model"]


class LiveReplay:
    """Drives one engine on its worker thread.

    Args:
        worker: the thread that owns the engine's model.
        engine: an engine with a fresh strategy.
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
        self._commits: Commits[Commit] = Commits()

    def replay(self, request: RenderedRequest) -> Outcome:
        return self.worker.call(self._replay, request)

    def _replay(self, request: RenderedRequest) -> Outcome:
        engine = self.engine
        if engine.disk is not None:
            engine.disk.flush()  # a replay is faster than the client was
        commits = self._commits.before(request)
        ttft_s: float | None = None
        if (end := request.cut_off) is not None:
            prefill = engine.prefill(request.prompt, self.progress, end=end)
            prefill_s = prefill.compute_s
        else:
            done = engine.replay(
                request.prompt, request.answer, self.progress, commit=False
            )
            prefill, prefill_s, ttft_s = done.prefill, done.prefill_s, done.ttft_s

        def store(length: int, use: Use) -> Commit:
            return engine.commit(prefill, request.answer, length=length, use=use)

        commits += self._commits.after(request, store)
        return Outcome(
            reused_tokens=prefill.plan.reused,
            stored_bytes=engine.store.nbytes,
            evicted=sum(commit.evicted for commit in commits),
            restore_s=prefill.restore_s,
            prefill_s=prefill_s,
            ttft_s=ttft_s,
            disk_tokens=prefill.plan.disk_tokens,
        )


class LiveModel:
    """A model in memory, which makes replayers with empty caches.

    Attributes:
        batched: whether answers of the model may decode together.
    """

    def __init__(self, folder: ModelFolder, worker: Worker, *, chunk: int) -> None:
        self.folder = folder
        self.worker = worker
        self.chunk = chunk
        self._disks = ExitStack()
        loaded = worker.call(Loader().load, folder)
        self.model, self.batched = loaded.model, loaded.batched

    def replayer(
        self, strategy: Strategy, progress: Progress | None = None
    ) -> LiveReplay:
        """Return a replayer with its own store."""
        return LiveReplay(self.worker, self.engine(strategy), progress)

    def users(
        self,
        strategy: Strategy,
        requests: Sequence[RenderedRequest],
        schedule: Schedule,
        progress: Progress | None = None,
    ) -> LiveUsers:
        """Return users who share a store of their own; see :class:`LiveUsers`."""
        engine = self.engine(strategy)
        engine.batched, engine.chunk_s = self.batched, CHUNK_S
        return LiveUsers(self.worker, engine, requests, schedule, progress)

    def engine(
        self, strategy: Strategy, *, model: Any = None, chunk: int | None = None
    ) -> Engine:
        """Return an engine with its own store.

        Args:
            strategy: a fresh one.
            model: computes instead of this model, for example a quantized copy.
            chunk: tokens computed at a time; this model's chunk size if None.
        """
        return Engine(
            self.model if model is None else model,
            strategy,
            disk=self._disk(strategy),
            chunk=chunk or self.chunk,
            window=self.folder.window,
        )

    def _disk(self, strategy: Strategy) -> DiskStore | None:
        """Return a disk for one strategy, empty like its memory."""
        if strategy.tier is None:
            return None
        path = self._disks.enter_context(scratch_folder())
        folder = self._disks.enter_context(closing(DiskFolder(path, strategy.disk)))
        return folder.open("replay", strategy.tier)

    def close(self) -> None:
        """Remove what was written to disk."""
        self._disks.close()

    def describe(self) -> dict[str, Any]:
        """Return device, BLAS and chunk size, for a manifest."""
        return {
            "device": device_name(),
            "blas": str(blas.preload()),
            "chunk": self.chunk,
        }


@contextmanager
def live_model(folder: ModelFolder, *, chunk: int = 2048) -> Iterator[LiveModel]:
    """Load a model on its own worker thread, which ends with the block.

    Raises:
        ModelError: the model cannot be loaded or its cache cannot be cut.
    """
    with Worker() as worker, closing(LiveModel(folder, worker, chunk=chunk)) as live:
        yield live
