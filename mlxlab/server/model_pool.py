"""Models in memory and their engines, under one memory budget.

All functions must run on the worker thread, unless they say otherwise.
"""

from __future__ import annotations

import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mlx.core as mx

from mlxlab.engine import DiskFolder, DiskStore, Engine, LoadedModel, Loader, Memory
from mlxlab.errors import DiskError, MemoryFullError, ModelError, StrategyError
from mlxlab.files import cache_folder
from mlxlab.models.folder import ModelFolder
from mlxlab.pace import CHUNK_S
from mlxlab.replay.cost_model import recall_costs
from mlxlab.strategies import Strategy, parse_strategy

__all__ = ["EngineKey", "Holdings", "ModelPool", "default_budget"]

log = logging.getLogger(__name__)

_MIB = 2**20
#: Part of the budget that may wait to be written to disk, beside the budget.
_BACKLOG_SHARE = 16


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Engines with different keys must not share a cache: strategy and credential."""

    strategy: str
    credential: str


@dataclass(frozen=True, slots=True)
class Holdings:
    """What is stored for later prompts, by tier.

    Attributes:
        stored: bytes of keys and values in memory, by model and strategy.
        capacity: most bytes that the strategies in use may hold there.
        on_disk: bytes that are taken on disk, at most.
        disk: most bytes that may be.
        pinned: stored tokens that are evicted last.
    """

    stored: Mapping[tuple[str, str], int] = field(default_factory=dict)
    capacity: int = 0
    on_disk: int = 0
    disk: int = 0
    pinned: int = 0

    @property
    def in_memory(self) -> int:
        """Bytes of keys and values in memory."""
        return sum(self.stored.values())


@dataclass(slots=True)
class _Loaded:
    model: LoadedModel
    weights: int
    engines: OrderedDict[EngineKey, Engine] = field(default_factory=OrderedDict)

    @property
    def is_used(self) -> bool:
        return any(engine.users for engine in self.engines.values())

    @property
    def nbytes(self) -> int:
        return self.weights + sum(e.store.nbytes for e in self.engines.values())


class ModelPool:
    """Loads models on demand and unloads the least recently used ones for room.

    Args:
        budget: bytes for weights, stored and working caches, and what a prefill needs.
        chunk: tokens that engines compute at a time.
        loader: loads models and opens engines; a new one if None.
        disk: where strategies with a disk write; a folder of the user's cache if None.
        credential: name of the server's credential, see :meth:`load`.
        generated: whether it was made at the start. On disk all such credentials are
            one, since each server makes another.
    """

    def __init__(
        self,
        budget: int,
        *,
        chunk: int = 2048,
        loader: Loader | None = None,
        disk: Path | None = None,
        credential: str = "",
        generated: bool = False,
    ) -> None:
        self.budget = budget
        self.memory = Memory(budget)
        self.chunk = chunk
        self._loader = loader or Loader()
        self._disk_path = disk
        self.credential = credential
        self._generated = generated
        self._disk: DiskFolder | None = None
        self._has_no_disk = False  # it was said why
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # least recent first

    @property
    def nbytes(self) -> int:
        """Size of all weights and of stored keys and values in bytes."""
        return sum(loaded.nbytes for loaded in self._loaded.values())

    @property
    def stored(self) -> dict[tuple[str, str], int]:
        """Return the bytes of keys and values by model and strategy."""
        stored: dict[tuple[str, str], int] = {}
        for name, loaded in self._loaded.items():
            for key, engine in loaded.engines.items():
                at = (name, key.strategy)
                stored[at] = stored.get(at, 0) + engine.store.nbytes
        return stored

    @property
    def batched(self) -> dict[str, bool]:
        """Return whether answers share a batch, by loaded model; from any thread."""
        loaded = self._loaded.copy()  # at once, other than a loop over it
        return {name: own.model.batched for name, own in loaded.items()}

    @property
    def holdings(self) -> Holdings:
        """Return what is stored."""
        strategies = [engine.strategy for engine in self._engines]
        disk = self._disk
        return Holdings(
            self.stored,
            sum(strategy.capacity for strategy in strategies),
            disk.nbytes if disk is not None else 0,
            disk.size if disk is not None else 0,
            sum(strategy.pinned_tokens for strategy in strategies),
        )

    @property
    def _engines(self) -> Iterator[Engine]:
        for loaded in self._loaded.values():
            yield from loaded.engines.values()

    def engine(self, folder: ModelFolder, key: EngineKey) -> Engine:
        """Return the engine for a model, a strategy and a credential.

        Raises:
            ModelError: see :meth:`load`.
        """
        loaded = self._load(folder)
        if key not in loaded.engines:
            loaded.engines[key] = self._new_engine(loaded, key)
        loaded.engines.move_to_end(key)
        return loaded.engines[key]

    def release(self) -> bool:
        """Drop the stored tokens or the model that was not used for longest.

        Returns:
            Whether there was any that no request uses.
        """
        for loaded in self._loaded.values():
            engines = loaded.engines
            idle = [k for k, e in engines.items() if not e.users and e.store.nbytes]
            if idle:
                log.warning(
                    "stored tokens of %s dropped to make room", idle[0].strategy
                )
                del engines[idle[0]]
                _free()
                return True
        return self._unload()

    def spec(self, folder: ModelFolder, strategy: str) -> str:
        """Return a strategy's spec with the capacity that the budget leaves for it.

        A capacity that the spec names stays as it is. Others are at most half of what
        the weights leave.

        Raises:
            StrategyError: the capacity leaves no memory for prompts.
        """
        made = parse_strategy(strategy, layout=folder.layout)
        weights = self._loader.weigh(folder)
        if "capacity" not in made.declared:
            return strategy
        if "capacity=" in strategy:
            self._check_capacity(strategy, made.capacity, weights)
            return strategy
        most = (self.budget - weights) // 2
        if made.capacity <= most:
            return strategy
        joint = "," if ":" in strategy else ":"
        return f"{strategy}{joint}capacity={max(most // _MIB, 1)}MiB"

    def _check_capacity(self, strategy: str, capacity: int, weights: int) -> None:
        room = max(self.memory.usable - weights, 0)
        if room < capacity:
            raise StrategyError(
                f"{strategy}: of --memory {self.budget // _MIB}MiB, {room // _MIB}MiB "
                "are left beside the weights, for stored tokens and for prompts; give "
                "less capacity or more memory"
            )

    def load(self, folder: ModelFolder, strategy: str) -> None:
        """Load a model, and open its engine for the server's credential.

        So the first request finds its disk open.

        Raises:
            ModelError: the model cannot be loaded, is larger than the budget, or cannot
                be run under this strategy.
        """
        self.engine(folder, EngineKey(strategy, self.credential))

    def keep_only(self, wanted: Collection[tuple[str, str]]) -> None:
        """Drop engines whose model and strategy no alias names any more."""
        models = {model for model, _ in wanted}
        for name in [name for name in self._loaded if name not in models]:
            del self._loaded[name]
        for name in self._loaded:
            engines = self._loaded[name].engines
            for key in [k for k in engines if (name, k.strategy) not in wanted]:
                del engines[key]
        _free()

    def close(self) -> None:
        """Write what waits for the disk."""
        if self._disk is not None:
            self._disk.close()

    def _new_engine(self, loaded: _Loaded, key: EngineKey) -> Engine:
        folder = loaded.model.folder
        return self._loader.open(
            loaded.model,
            self.spec(folder, key.strategy),
            disk=partial(self._open_disk, folder, key.credential),
            chunk=self.chunk,
            chunk_s=CHUNK_S,
            memory=self.memory,
        )

    def _open_disk(
        self, folder: ModelFolder, credential: str, strategy: Strategy
    ) -> DiskStore | None:
        """Return the store that strategies of a model share; None without a disk."""
        if strategy.tier is None or not credential or self._has_no_disk:
            return None
        costs = recall_costs(folder.digest, self.chunk)
        if costs is not None:
            strategy.tier.pays = costs.loading_pays(strategy.tier)
        try:
            if self._disk is None:
                path = self._disk_path or cache_folder() / "disk"
                backlog = self.budget // _BACKLOG_SHARE
                self._disk = DiskFolder(path, strategy.disk, backlog=backlog)
            self._disk.size = max(self._disk.size, strategy.disk)
            is_generated = self._generated and credential == self.credential
            owner = "generated" if is_generated else credential
            parts = (folder.digest, folder.layout, strategy.windows, owner)
            return self._disk.open(repr(parts), strategy.tier)
        except (DiskError, OSError) as error:
            log.warning("%s", error)
            self._has_no_disk = True
            return None

    def _load(self, folder: ModelFolder) -> _Loaded:
        if folder.name in self._loaded:
            self._loaded.move_to_end(folder.name)
            return self._loaded[folder.name]
        weights = self._loader.weigh(folder)
        if weights > self.budget:
            raise ModelError(
                f"model {folder.name}: its weights take {weights // _MIB} MiB, the "
                f"memory budget is {self.budget // _MIB} MiB; raise --memory"
            )
        while weights > self.memory.room and (self._unload() or self.release()):
            pass
        if weights > self.memory.room:
            raise MemoryFullError(
                f"model {folder.name}: its weights take {weights // _MIB} MiB, and "
                "running requests leave less of --memory; try again soon"
            )
        loaded = _Loaded(self._loader.load(folder), weights)
        if not loaded.model.batched:
            log.warning(
                "model %s: answers do not share a batch: mlx-lm decodes several of "
                "them wrongly, or not at all",
                folder.name,
            )
        self._loaded[folder.name] = loaded
        return loaded

    def _unload(self) -> bool:
        """Unload the model that was not used for longest, if none needs it."""
        idle = [name for name, loaded in self._loaded.items() if not loaded.is_used]
        if len(self._loaded) < 2 or not idle:
            return False
        log.warning("model %s unloaded to make room", idle[0])
        del self._loaded[idle[0]]
        _free()
        return True


def _free() -> None:
    """Free what was dropped: requests that have ended hold engines in cycles."""
    gc.collect()
    mx.clear_cache()


def default_budget() -> int:
    """Return three quarters of the memory that the device can use."""
    size = mx.device_info().get("max_recommended_working_set_size")
    if size is None:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(size) * 3 // 4
