"""The prompt cache of mlx-lm's server, unchanged, as a reference.

Importing this module does not import mlx-lm; making an instance does.
"""

from __future__ import annotations

import gc
import time
from itertools import count
from weakref import WeakValueDictionary

from mlxlab.backend import prepare
from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.models.layout import Windows
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies.base import Example, Strategy
from mlxlab.strategies.parameters import Limit, ParameterValue, parameter
from mlxlab.strategies.placements.base import Combined
from mlxlab.strategies.placements.blocks import System
from mlxlab.strategies.placements.presets import MlxLm
from mlxlab.strategies.plan import Commit, Handle, Keep, Plan, Put, Span
from mlxlab.strategies.registry import register
from mlxlab.strategies.sequences.hashing import lost_tokens

__all__ = ["MlxLmLru"]

PATIENCE = 1000  # milliseconds

UNLIMITED = 1 << 63  # LRUPromptCache's own default

MODEL = "mlxlab"  # its entries are keyed by model; one strategy serves one


class _Entry:
    """Stands in for a layer's cache: a handle with the methods LRUPromptCache calls."""

    def __init__(
        self, handle: Handle, length: int, token_bytes: int, checkpoint_bytes: int
    ) -> None:
        self.handle = handle
        self.length = length
        self.token_bytes = token_bytes
        self.checkpoint_bytes = checkpoint_bytes

    @property
    def nbytes(self) -> int:
        return self.length * self.token_bytes + self.checkpoint_bytes

    def is_trimmable(self) -> bool:
        return self.checkpoint_bytes == 0

    def trim(self, tokens: int) -> int:
        trimmed = min(tokens, self.length)
        self.length -= trimmed
        return trimmed


@register
class MlxLmLru(Strategy):
    """``mlx_lm.models.cache.LRUPromptCache`` deciding over this project's store.

    Driven as ``mlx_lm.server`` drives it for a model whose cache can be trimmed: fetch
    the nearest entry, insert prompt and answer as one ``assistant`` entry. (The
    checkpoints that the batched server inserts on the way go as soon as the longer
    entry arrives.) An exact hit leaves mlx-lm nothing to compute; here the last token
    is computed, as everywhere.

    For a model whose cache cannot be trimmed, the caches in front of the prompt's last
    token stay as an entry of their own. If the last message is the user's, and not a
    tool's result, so do those at the ends of system text and message.

    A commit evicts the positions of all dropped sequences past their longest common
    prefix with the sequences stored afterwards.

    Raises:
        StrategyError: a parameter is out of range, or mlx-lm cannot be imported.
    """

    name = "mlx-lm"
    summary = "mlx-lm's own LRUPromptCache, for reference"
    literature = "LRUPromptCache (mlx_lm.server)"
    rank = 50
    example = Example({"max_size": 3, "capacity": 120}, handles=3, slots=3)

    windows = Windows.CHECKPOINTS.value
    checkpoints = ""
    share = 0

    max_size: int = parameter(
        10, "Sequences to hold.", Limit.SLOTS, tries=(1, 2, 5, 10, 20, 50)
    )
    capacity: int = parameter(
        UNLIMITED,
        "Most bytes to hold, the cache's max_bytes; a longer sequence is not stored.",
        Limit.CAPACITY,
    )

    def __init__(self, **parameters: ParameterValue) -> None:
        super().__init__(**parameters)
        prepare()  # here as in mlxlab.engine
        try:
            from mlx_lm.models.cache import LRUPromptCache
        except ImportError as error:
            raise StrategyError(
                f"{self.name}: needs the mlx-lm package with LRUPromptCache ({error}); "
                "pip install 'mlxlab[cpu]', or choose another strategy"
            ) from error
        self._cache = LRUPromptCache(self.max_size, self.capacity)
        self._handles = count(1)
        self._sequences: dict[Handle, Tokens] = {}
        # The cache does not report what it drops. Only the cache holds its entries, so
        # a dropped one leaves this mapping, at once unless a profiler holds it too.
        self._alive: WeakValueDictionary[Handle, _Entry] = WeakValueDictionary()

    def _match(self, prompt: Prompt) -> Plan:
        tokens = prompt.tokens[:-1] if self.checkpoint_bytes else prompt.tokens
        cache, rest = self._cache.fetch_nearest_cache(MODEL, tokens.tolist())
        reuse = min(len(tokens) - len(rest), len(prompt) - 1)
        captures = self._captures(prompt, reuse)
        if cache is None or reuse == 0:
            return Plan(len(prompt), captures=captures)
        handle = cache[0].handle
        resume = handle if self.checkpoint_bytes else None
        span = Span(handle, 0, 0, reuse)
        return Plan(len(prompt), (span,), reuse, resume=resume, captures=captures)

    def _captures(self, prompt: Prompt, reuse: int) -> tuple[int, ...]:
        """Return where the server's segments of this prompt end."""
        if not self.checkpoint_bytes:
            return ()
        places = Combined((MlxLm(),)).places(prompt, 0)
        return tuple(place for place in places if place > reuse)

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        """Insert ``prompt`` and detect the entries that the cache dropped for it."""
        if len(prompt) == 0:
            return Commit()
        taken = [place for place in plan.captures if place < len(prompt)]
        system = System().places(prompt, 0)
        new: dict[Handle, Tokens] = {}
        for stop in (*taken, len(prompt)):
            kind = "assistant"
            if stop in taken and stop < plan.length - 1:
                kind = "system" if stop in system else "user"
            handle = next(self._handles)
            new[handle] = prompt.tokens[:stop]
            self._insert(handle, new[handle], kind)
        self._await_drops()
        gone = [held for held in self._sequences if held not in self._alive]
        dropped = [self._sequences.pop(held) for held in gone]
        self._sequences |= {h: new[h] for h in new if h in self._alive}
        resumed = bool(self.checkpoint_bytes)
        kept = [handle for handle in new if handle in self._sequences]
        return Commit(
            drop=tuple(gone),
            forget=tuple(gone) if resumed else (),
            put=tuple(Put(handle, 0, len(new[handle])) for handle in kept),
            keep=tuple(Keep(h, len(new[h])) for h in kept) if resumed else (),
            evicted=lost_tokens(dropped, self._sequences.values()),
        )

    def restorable_after(self, length: int) -> int:
        size = length * self.token_bytes + self.checkpoint_bytes
        return length if size <= self.capacity else 0

    def _insert(self, handle: Handle, tokens: Tokens, kind: str) -> None:
        """Give the cache an entry that only the cache refers to."""
        entry = _Entry(handle, len(tokens), self.token_bytes, self.checkpoint_bytes)
        self._alive[handle] = entry
        self._cache.insert_cache(MODEL, tokens.tolist(), [entry], cache_type=kind)

    def _await_drops(self) -> None:
        """Wait until as many entries are alive as the cache counts."""
        for waited in range(PATIENCE):
            if len(self._alive) == len(self._cache):
                return
            time.sleep(0.001)
            if waited % 100 == 50:
                gc.collect()
        raise IntegrityError(f"{self.name}: dropped entries are still referenced")

    @property
    def occupancy(self) -> tuple[int, int]:
        return len(self._sequences), self.max_size

    @property
    def max_sequences(self) -> int:
        return self.max_size

    @property
    def stored_tokens(self) -> int:
        return sum(len(tokens) for tokens in self._sequences.values())

    @property
    def stored_checkpoints(self) -> int:
        return len(self._sequences) if self.checkpoint_bytes else 0

    def _check_stored(self) -> None:
        """Counts here and in the cache agree, and both limits hold."""
        held, alive = sorted(self._sequences), sorted(self._alive)
        if held != alive or len(held) != len(self._cache):
            raise IntegrityError(
                f"{self.name}: books hold {held}, alive are {alive}, "
                f"the cache counts {len(self._cache)}"
            )
        if len(held) > self.max_size:
            raise IntegrityError(
                f"{self.name}: {len(held)} sequences in max_size={self.max_size}"
            )
        if self._cache.nbytes != self.stored_bytes:
            raise IntegrityError(
                f"{self.name}: books hold {self.stored_bytes} bytes, the cache "
                f"{self._cache.nbytes}"
            )
