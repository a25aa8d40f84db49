"""Computes a prompt of which some positions are already in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache
from numpy.typing import NDArray

from mlxlab.engine.rope import Positions, Rope, WritableCache
from mlxlab.prompt import Tokens
from mlxlab.strategies import Plan

__all__ = ["ScatteredPrefill"]


@dataclass(frozen=True, slots=True)
class ScatteredPrefill:
    """Keys and values of a prompt's tokens, some restored and some missing.

    Attributes:
        tokens: the prompt's ids, shape ``[n]``.
        cache: one KVCache per layer, with room for all tokens.
        filled: mask of the positions that ``cache`` holds, shape ``[n]``.
        moved: positions with moved keys and values, ascending.
        rope: the model's rotary embeddings.
    """

    tokens: Tokens
    cache: Sequence[KVCache]
    filled: NDArray[np.bool_]
    moved: Positions
    rope: Rope

    @classmethod
    def of(
        cls, plan: Plan, tokens: Tokens, cache: Sequence[KVCache], rope: Rope
    ) -> ScatteredPrefill:
        """Build from a plan whose spans are all in place in ``cache``."""
        filled = np.zeros(len(tokens), bool)
        moved = np.zeros(len(tokens), bool)
        filled[: cache[0].offset] = True
        for span in plan.spans:
            place = slice(span.target, span.target + span.length)
            filled[place] = True
            moved[place] = span.moved
        return cls(tokens, cache, filled, np.flatnonzero(moved), rope)

    def compute(self, positions: Positions) -> None:
        """Compute tokens at some positions, over all filled positions before them.

        Args:
            positions: ascending. Every earlier position must be filled or be among
                these.
        """
        layers = [WritableCache(layer, positions) for layer in self.cache]
        self.rope.compute(self.tokens[positions], positions, layers)
        mx.eval([(layer.keys, layer.values) for layer in self.cache])
        mx.clear_cache()
        self.filled[positions] = True
