"""A prompt of which parts are in place and the rest is computed in between.

Knows no strategy and no store's handles: what is in place, and what is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache
from numpy.typing import NDArray

from mlxlab.engine.rope import Positions, Rotary, Written
from mlxlab.prompt import Tokens
from mlxlab.strategies import Plan

__all__ = ["Patch"]


@dataclass(frozen=True, slots=True)
class Patch:
    """Keys and values of a prompt's tokens, some restored and some missing.

    Attributes:
        tokens: the prompt's ids, shape ``[n]``.
        cache: one KVCache a layer, with room for all of them.
        filled: of each position, whether ``cache`` holds it, shape ``[n]``.
        moved: positions that hold moved keys and values, ascending.
        rotary: of the model.
    """

    tokens: Tokens
    cache: Sequence[KVCache]
    filled: NDArray[np.bool_]
    moved: Positions
    rotary: Rotary

    @classmethod
    def of(
        cls, plan: Plan, tokens: Tokens, cache: Sequence[KVCache], rotary: Rotary
    ) -> Patch:
        """The patch of a plan whose spans are all in place in ``cache``."""
        filled = np.zeros(len(tokens), bool)
        moved = np.zeros(len(tokens), bool)
        filled[: cache[0].offset] = True
        for span in plan.spans:
            place = slice(span.target, span.target + span.length)
            filled[place] = True
            moved[place] = span.moved
        return cls(tokens, cache, filled, np.flatnonzero(moved), rotary)

    def compute(self, positions: Positions) -> None:
        """Compute tokens over all that stands before them.

        Args:
            positions: ascending; no position before the last of them may be open
                unless it is one of them.
        """
        layers = [Written(layer, positions) for layer in self.cache]
        self.rotary.compute(self.tokens[positions], positions, layers)
        mx.eval([(layer.keys, layer.values) for layer in self.cache])
        mx.clear_cache()
        self.filled[positions] = True
