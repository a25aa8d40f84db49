"""Measures the cache layout of a model by its own caches.

mlx is lazy: the arrays of a cache have shapes and types before anything is evaluated.
So a layout can be measured on a model whose weights were never read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
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
    parts = Counter(map(_measure, flatten(cache)))
    return CacheLayout(
        tuple(replace(part, count=count) for part, count in parts.items() if part.size)
    )


def _measure(part: CacheView) -> LayerCache:
    """Return what one layer keeps; size 0 if it never fills its cache."""
    if isinstance(part, StateCache):
        size = sum(array.nbytes for array in part.arrays())
        return LayerCache(1, CacheKind.STATE, size)
    # The shape is [1, heads, positions, width]; the width of values may be 0.
    arrays = list(part.arrays())
    size = sum(a.shape[1] * a.shape[3] * a.dtype.size for a in arrays)
    numbers = [a.shape[1] * a.shape[3] for a in arrays] or [0, 0]
    if isinstance(part, WindowCache):
        return LayerCache(1, CacheKind.WINDOW, size, part.size, *numbers)
    return LayerCache(1, CacheKind.TOKENS, size, 0, *numbers)
