"""Selects the moved tokens to compute again: those with the largest effect.

Scores the tokens with passes of the model and picks the highest.
"""

from __future__ import annotations

from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxlab.engine.rope import LayerCache, Positions, WritableCache
from mlxlab.engine.scattered_prefill import ScatteredPrefill
from mlxlab.errors import ModelError
from mlxlab.strategies import Selection

__all__ = ["select"]

#: Most tokens at the prompt's end whose attention is scored.
_PROBE = 128

_SEED = 0

Scores: TypeAlias = NDArray[np.float64]
"""One score per prompt position; the highest are selected."""


def select(
    scattered: ScatteredPrefill, selection: Selection, count: int, chunk: int
) -> Positions:
    """Select ``count`` of the moved positions.

    Args:
        scattered: a prefill with all spans in place and nothing computed yet. Its
            open positions are used as scratch space.
        selection: how to score the positions.
        count: at most the number of moved positions.
        chunk: tokens computed at a time.

    Returns:
        Ascending positions, shape ``[count]``.
    """
    match selection:
        case Selection.RANDOM:
            scores = np.random.default_rng(_SEED).random(len(scattered.tokens))
        case Selection.DEVIATION:
            scores = _deviation(scattered, chunk)
        case Selection.ATTENTION:
            scores = _attention(scattered)
    order = np.argsort(-scores[scattered.moved], kind="stable")
    return np.sort(scattered.moved[order[:count]])


def _deviation(scattered: ScatteredPrefill, chunk: int) -> Scores:
    """Return the distance of each stored second-layer key from its recomputed value.

    First-layer keys depend on their own token only, so they are always right.
    """
    if len(scattered.cache) < 2:
        raise ModelError("selection=deviation: this model has no second layer")
    scores = np.zeros(len(scattered.tokens))
    # Open positions are computed too, because later tokens attend to them.
    behind = np.arange(scattered.moved[0], len(scattered.tokens))
    for start in range(0, len(behind), chunk):
        positions = behind[start : start + chunk]
        first, second, *others = scattered.cache
        compared = _ComparingCache(second, positions)
        layers = [
            WritableCache(first, positions),
            compared,
            *(_ComparingCache(layer, positions) for layer in others),
        ]
        scattered.rope.compute(scattered.tokens[positions], positions, layers)
        # Lazy evaluation: no layer after the second one's keys is computed.
        mx.eval(first.keys, first.values, compared.deviation)
        scores[positions] = np.array(compared.deviation)
    return scores


def _attention(scattered: ScatteredPrefill) -> Scores:
    """Return the last tokens' attention to each position, over all layers."""
    length = len(scattered.tokens)
    behind = int(np.flatnonzero(scattered.filled)[-1]) + 1
    positions = np.arange(max(behind, length - _PROBE), length)
    visible = scattered.filled.copy()
    visible[positions] = True
    layers = [_ProbingCache(layer, positions, visible) for layer in scattered.cache]
    scattered.rope.compute(scattered.tokens[positions], positions, layers)
    scores = np.zeros(length)
    for i, layer in enumerate(layers):
        scores += np.array(layer.received(scattered.rope.scale(i)))
    return scores


class _ComparingCache(LayerCache):
    """Compares new keys with the stored ones, and keeps the stored ones.

    Attributes:
        deviation: squared distance per token, ``[n]``; not evaluated.
    """

    deviation: mx.array

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        stored = self.keys[..., self.positions, :]
        difference = keys.astype(mx.float32) - stored.astype(mx.float32)
        self.deviation = (difference**2).sum(axis=(0, 1, 3))
        return super().update_and_fetch(keys, values)


class _ProbingCache(WritableCache):
    """Keeps the queries of its tokens."""

    queries: mx.array

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        # The model made queries and keys with the same rope embedding.
        (self.queries,) = (made for made in self.rotated if made is not keys)
        return super().update_and_fetch(keys, values)

    def received(self, scale: float | None) -> mx.array:
        """Return attention by position, summed over heads and queries: ``[stop]``."""
        _, kv_heads, _, head_dim = self.keys.shape
        queries = self.queries.astype(mx.float32)
        queries = queries.reshape(kv_heads, -1, queries.shape[2], head_dim)
        keys = self.keys[0, :, None, : self.stop].astype(mx.float32)
        products = (scale or head_dim**-0.5) * (queries @ keys.swapaxes(-1, -2))
        products = mx.where(self.make_mask(), products, -mx.inf)
        return mx.softmax(products, axis=-1).sum(axis=(0, 1, 2))
