"""Measures the cache layout of a model by its own caches.

mlx is lazy: the arrays of a cache have shapes and types before anything is evaluated.
So a layout can be measured on a model whose weights were never read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from mlxlab.errors import ModelError
from mlxlab.models.layout import CacheKind, CacheLayout, LayerCache

__all__ = ["measure_layout"]

# Some models keep a state of the last few tokens, which is full after this many.
_TRIAL_TOKENS = 16

_BY_TOKEN = (KVCache, ConcatenateKVCache)


def measure_layout(model: Any) -> CacheLayout:
    """Return what the caches of a model keep, without evaluating anything.

    Args:
        model: a model of mlx-lm; its weights are not used.

    Raises:
        ModelError: the model keeps what mlxlab cannot resume.
    """
    cache = make_prompt_cache(model)
    found = []
    for _ in range(2):
        model(mx.zeros((1, _TRIAL_TOKENS), dtype=mx.int32), cache=cache)
        found.append(_layout(cache))
    if found[0] != found[1]:
        raise ModelError("keeps a state that grows with the prompt")
    return found[0]


def _layout(cache: Iterable[Any]) -> CacheLayout:
    kinds = Counter(part for layer in cache for part in _parts(layer))
    return CacheLayout(
        tuple(LayerCache(count, *kind) for kind, count in kinds.items() if kind[1])
    )


def _parts(cache: Any) -> Iterator[tuple[CacheKind, int, int]]:
    """Yield kind, size and window of each cache in the cache of a layer."""
    match cache:
        case CacheList():
            for part in cache.caches:
                yield from _parts(part)
        case ArraysCache():
            arrays = (array for array in cache.cache if array is not None)
            yield CacheKind.STATE, sum(array.nbytes for array in arrays), 0
        case RotatingKVCache():
            yield CacheKind.WINDOW, _position_bytes(cache), cache.max_size
        case ChunkedKVCache():
            yield CacheKind.WINDOW, _position_bytes(cache), cache.chunk_size
        case _ if isinstance(cache, _BY_TOKEN):
            yield CacheKind.TOKENS, _position_bytes(cache), 0
        case _:
            known = "mlxlab resumes the caches of mlx_lm.models.cache"
            raise ModelError(f"keeps {type(cache).__name__}; {known}")


def _position_bytes(cache: Any) -> int:
    """Return the bytes of a position; 0 for a layer that never fills its cache."""
    if cache.keys is None:
        return 0
    arrays: tuple[mx.array, ...] = (cache.keys, cache.values)
    # The shape is [1, heads, positions, width]; the width of values may be 0.
    return sum(a.shape[1] * a.shape[3] * a.dtype.size for a in arrays)
