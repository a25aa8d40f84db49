"""Measures the cache layout of a model by its own caches.

mlx is lazy: the arrays of a cache have shapes and types before anything is evaluated.
So a layout can be measured on a model whose weights were never read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxlab.engine.layer_caches import CacheView, StateCache, WindowCache, flatten
from mlxlab.errors import ModelError
from mlxlab.models.layout import CacheKind, CacheLayout, LayerCache

__all__ = ["measure_layout"]

# Some models keep a state of the last few tokens, which is full after this many.
_TRIAL_TOKENS = 16


def measure_layout(model: Any) -> CacheLayout:
    """Return what the caches of a model keep, without evaluating anything.

    Args:
        model: a model of mlx-lm; its weights are not used.

    Raises:
        ModelError: a cache of an unknown class, or a state that grows.
    """
    cache = make_prompt_cache(model)
    found = []
    for _ in range(2):
        model(mx.zeros((1, _TRIAL_TOKENS), dtype=mx.int32), cache=cache)
        found.append(_layout(cache))
    if found[0] != found[1]:
        raise ModelError("keeps a state that grows with the prompt")
    return found[0]


def _layout(cache: Sequence[Any]) -> CacheLayout:
    kinds = Counter(_kind(part) for part in flatten(cache))
    return CacheLayout(
        tuple(LayerCache(count, *kind) for kind, count in kinds.items() if kind[1])
    )


def _kind(part: CacheView) -> tuple[CacheKind, int, int]:
    """Return kind, size and window; size 0 for a layer that never fills its cache."""
    if isinstance(part, StateCache):
        return CacheKind.STATE, sum(array.nbytes for array in part.arrays()), 0
    # The shape is [1, heads, positions, width]; the width of values may be 0.
    size = sum(a.shape[1] * a.shape[3] * a.dtype.size for a in part.arrays())
    if isinstance(part, WindowCache):
        return CacheKind.WINDOW, size, part.size
    return CacheKind.TOKENS, size, 0
