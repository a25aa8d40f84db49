"""One slot, trimmed to the common prefix: the cache of a plain chat loop."""

from __future__ import annotations

from itertools import count

import numpy as np

from mlxlab.errors import IntegrityError
from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.strategies.base import CAPACITY, Example, Strategy
from mlxlab.strategies.parameters import Limit, ParameterValue, parameter
from mlxlab.strategies.plan import Commit, Handle, Plan, Put, Span
from mlxlab.strategies.registry import register
from mlxlab.strategies.sequences.hashing import lost_tokens

__all__ = ["Prefix"]


@register
class Prefix(Strategy):
    """Stores the last sequence and restores its common prefix with the next prompt.

    A commit evicts the old sequence's positions past its common prefix with the
    new one.
    """

    name = "prefix"
    summary = "the last sequence, trimmed to the common prefix"
    literature = "single-slot prompt cache (a llama.cpp slot, a plain mlx-lm chat loop)"
    rank = 10
    example = Example({"capacity": 60}, handles=1, slots=1)

    capacity: int = parameter(
        CAPACITY,
        "Most bytes to hold; a longer sequence keeps its head.",
        Limit.CAPACITY,
    )

    def __init__(self, **parameters: ParameterValue) -> None:
        super().__init__(**parameters)
        self._handles = count(1)
        self._handle: Handle | None = None
        self._tokens: Tokens = np.empty(0, np.int32)

    def _match(self, prompt: Prompt) -> Plan:
        reuse = min(common_prefix(prompt.tokens, self._tokens), len(prompt) - 1)
        if self._handle is None or reuse == 0:
            return Plan(len(prompt))
        return Plan(len(prompt), (Span(self._handle, 0, 0, reuse),), reuse)

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        """Replace the slot by ``prompt``."""
        tokens = prompt.tokens[: self.capacity_tokens]
        if len(tokens) == 0:
            return Commit()
        drop = () if self._handle is None else (self._handle,)
        evicted = lost_tokens([self._tokens], [tokens])
        self._handle, self._tokens = next(self._handles), tokens
        put = (Put(self._handle, 0, len(tokens)),)
        return Commit(drop=drop, put=put, evicted=evicted)

    def restorable_after(self, length: int) -> int:
        return min(length, self.capacity_tokens)

    @property
    def occupancy(self) -> tuple[int, int]:
        return int(self._handle is not None), 1

    @property
    def max_sequences(self) -> int:
        return 1

    @property
    def stored_tokens(self) -> int:
        return len(self._tokens)

    def _check_stored(self) -> None:
        """The slot has a handle exactly when it holds tokens; capacity."""
        if (self._handle is None) != (len(self._tokens) == 0):
            raise IntegrityError(
                f"{self.name}: handle {self._handle} with {len(self._tokens)} tokens"
            )
