"""Which moved tokens are computed again: those where it matters most.

Scores tokens with passes of the model, and picks; plans and stores are not its
business.
"""

from __future__ import annotations

from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxlab.engine.rope import LayerCache, Positions, Written
from mlxlab.engine.scattered_prefill import Patch
from mlxlab.errors import ModelError
from mlxlab.strategies import Selection

__all__ = ["select"]

#: Most tokens at the prompt's end whose attention is asked for.
_PROBE = 128

_SEED = 0

Scores: TypeAlias = NDArray[np.float64]
"""By position of the prompt; the highest are picked."""


def select(patch: Patch, selection: Selection, count: int, chunk: int) -> Positions:
    """Pick ``count`` of the moved positions.

    Args:
        patch: all spans in place, nothing computed yet. Its open positions are used
            as scratch space.
        selection: how to score them.
        count: how many; at most as many as there are.
        chunk: tokens computed at a time.

    Returns:
        Ascending positions, shape ``[count]``.
    """
    match selection:
        case Selection.RANDOM:
            scores = np.random.default_rng(_SEED).random(len(patch.tokens))
        case Selection.DEVIATION:
            scores = _deviation(patch, chunk)
        case Selection.ATTENTION:
            scores = _attention(patch)
    order = np.argsort(-scores[patch.moved], kind="stable")
    return np.sort(patch.moved[order[:count]])


def _deviation(patch: Patch, chunk: int) -> Scores:
    """How far the second layer's keys are from newly computed ones, by position.

    The first layer's depend on their token alone, so they are right already.
    """
    if len(patch.cache) < 2:
        raise ModelError("selection=deviation: this model has no second layer")
    scores = np.zeros(len(patch.tokens))
    # What is open is computed too: it is attended to.
    behind = np.arange(patch.moved[0], len(patch.tokens))
    for start in range(0, len(behind), chunk):
        positions = behind[start : start + chunk]
        first, second, *others = patch.cache
        compared = _Compared(second, positions)
        layers = [
            Written(first, positions),
            compared,
            *(_Compared(layer, positions) for layer in others),
        ]
        patch.rotary.compute(patch.tokens[positions], positions, layers)
        # Lazy evaluation: no layer behind the second one's keys is computed.
        mx.eval(first.keys, first.values, compared.deviation)
        scores[positions] = np.array(compared.deviation)
    return scores


def _attention(patch: Patch) -> Scores:
    """How much the prompt's last tokens attend to a position, in all layers."""
    length = len(patch.tokens)
    behind = int(np.flatnonzero(patch.filled)[-1]) + 1
    positions = np.arange(max(behind, length - _PROBE), length)
    visible = patch.filled.copy()
    visible[positions] = True
    layers = [_Probed(layer, positions, visible) for layer in patch.cache]
    patch.rotary.compute(patch.tokens[positions], positions, layers)
    scores = np.zeros(length)
    for i, layer in enumerate(layers):
        scores += np.array(layer.received(patch.rotary.scale(i)))
    return scores


class _Compared(LayerCache):
    """Compares new keys with the ones that are there, and keeps those.

    Attributes:
        deviation: squared distance by token, ``[n]``; not evaluated.
    """

    deviation: mx.array

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        stored = self.keys[..., self.positions, :]
        difference = keys.astype(mx.float32) - stored.astype(mx.float32)
        self.deviation = (difference**2).sum(axis=(0, 1, 3))
        return super().update_and_fetch(keys, values)


class _Probed(Written):
    """Remembers who asked for what."""

    queries: mx.array

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        # The model made queries and keys with the same rotary embedding.
        (self.queries,) = (made for made in self.rotated if made is not keys)
        return super().update_and_fetch(keys, values)

    def received(self, scale: float | None) -> mx.array:
        """Attention that each position gets, summed over heads and queries: [stop]."""
        _, kv_heads, _, head_dim = self.keys.shape
        queries = self.queries.astype(mx.float32)
        queries = queries.reshape(kv_heads, -1, queries.shape[2], head_dim)
        keys = self.keys[0, :, None, : self.stop].astype(mx.float32)
        products = (scale or head_dim**-0.5) * (queries @ keys.swapaxes(-1, -2))
        products = mx.where(self.make_mask(), products, -mx.inf)
        return mx.softmax(products, axis=-1).sum(axis=(0, 1, 2))
