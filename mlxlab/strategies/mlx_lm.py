"""The prompt cache of mlx-lm's server, as it is, as the policy to compare with.

The one strategy that needs mlx-lm, and with it mlx, once an instance is made;
importing this module needs neither. Knows nothing of how the cache decides.
"""

from __future__ import annotations

import gc
import time
from itertools import count
from typing import ClassVar
from weakref import WeakValueDictionary

from mlxlab.blas import preload
from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies.base import (
    Commit,
    Handle,
    Plan,
    Put,
    Span,
    Strategy,
    require,
)
from mlxlab.strategies.sequences.hashing import lost_tokens

__all__ = ["MlxLmLru"]

PATIENCE = 1000  # milliseconds

UNLIMITED = 1 << 63  # LRUPromptCache's own default
MODEL = "mlxlab"  # its entries are keyed by model; one strategy serves one


class _Entry:
    """Stands in for a layer's cache: what LRUPromptCache asks of one, and a handle."""

    def __init__(self, handle: Handle, length: int, token_bytes: int) -> None:
        self.handle = handle
        self.length = length
        self.token_bytes = token_bytes

    @property
    def nbytes(self) -> int:
        return self.length * self.token_bytes

    def is_trimmable(self) -> bool:
        return True

    def trim(self, tokens: int) -> int:
        trimmed = min(tokens, self.length)
        self.length -= trimmed
        return trimmed


class MlxLmLru(Strategy):
    """``mlx_lm.models.cache.LRUPromptCache`` deciding over this project's store.

    Driven as ``mlx_lm.server`` drives it for a model whose cache can be trimmed: fetch
    the nearest entry, insert prompt and answer as one ``assistant`` entry. (The
    checkpoints that the batched server inserts on the way go as soon as the longer
    entry arrives.) An exact hit leaves mlx-lm nothing to compute; here the last token
    is computed, as everywhere.

    A commit evicts the positions of all dropped sequences past their longest common
    prefix with what is stored afterwards.

    Args:
        max_size: sequences held.
        capacity: see :class:`Strategy`, the cache's ``max_bytes``. By default it has no
            limit; a longer sequence is not kept at all.
        token_bytes: see :class:`Strategy`.

    Raises:
        StrategyError: a parameter is out of range, or mlx-lm cannot be imported.
    """

    name = "mlx-lm"
    summary = "mlx-lm's own LRUPromptCache, for reference"
    choices: ClassVar = {"max_size": (1, 2, 5, 10, 20, 50)}

    def __init__(
        self,
        *,
        max_size: int = 10,
        capacity: int = UNLIMITED,
        token_bytes: int = 1,
    ) -> None:
        super().__init__(capacity=capacity, token_bytes=token_bytes)
        require(self.name, max_size=max_size)
        preload()  # before mlx is imported, here as in mlxlab.engine
        try:
            from mlx_lm.models.cache import LRUPromptCache
        except ImportError as error:
            raise StrategyError(
                f"{self.name}: needs the mlx-lm package with LRUPromptCache ({error}); "
                "install mlx-lm >= 0.32 or choose another strategy"
            ) from error
        self.max_size = max_size
        self._cache = LRUPromptCache(max_size, capacity)
        self._handles = count(1)
        self._sequences: dict[Handle, Tokens] = {}
        # The cache tells nobody what it drops. Nothing else holds its entries, so
        # a dropped one leaves this mapping, at once unless a profiler looks on.
        self._alive: WeakValueDictionary[Handle, _Entry] = WeakValueDictionary()

    @property
    def parameters(self) -> dict[str, int]:
        return {"max_size": self.max_size, "capacity": self.capacity}

    def _match(self, prompt: Prompt) -> Plan:
        cache, rest = self._cache.fetch_nearest_cache(MODEL, prompt.tokens.tolist())
        reuse = min(len(prompt) - len(rest), len(prompt) - 1)
        if cache is None or reuse == 0:
            return Plan(len(prompt))
        return Plan(len(prompt), (Span(cache[0].handle, 0, 0, reuse),), reuse)

    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        """Insert ``prompt`` and find out what the cache dropped for it."""
        if len(prompt) == 0:
            return Commit()
        handle = next(self._handles)
        self._insert(handle, prompt.tokens)
        self._await_drops()
        gone = [held for held in self._sequences if held not in self._alive]
        dropped = [self._sequences.pop(held) for held in gone]
        put: tuple[Put, ...] = ()
        if handle in self._alive:
            self._sequences[handle] = prompt.tokens
            put = (Put(handle, 0, len(prompt)),)
        evicted = lost_tokens(dropped, self._sequences.values())
        return Commit(drop=tuple(gone), put=put, evicted=evicted)

    def restorable_after(self, length: int) -> int:
        return length if length * self.token_bytes <= self.capacity else 0

    def _insert(self, handle: Handle, tokens: Tokens) -> None:
        """Hand the cache an entry to which it alone holds a reference."""
        entry = _Entry(handle, len(tokens), self.token_bytes)
        self._alive[handle] = entry
        self._cache.insert_cache(MODEL, tokens.tolist(), [entry])

    def _await_drops(self) -> None:
        """Until as many entries are alive as the cache counts."""
        for waited in range(PATIENCE):
            if len(self._alive) == len(self._cache):
                return
            time.sleep(0.001)
            if waited % 100 == 50:
                gc.collect()
        raise IntegrityError(f"{self.name}: somebody holds on to dropped entries")

    @property
    def occupancy(self) -> tuple[int, int]:
        return len(self._sequences), self.max_size

    @property
    def stored_tokens(self) -> int:
        return sum(len(tokens) for tokens in self._sequences.values())

    def check_integrity(self) -> None:
        """These books and the cache's own agree, and both limits hold."""
        self._check_capacity()
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
