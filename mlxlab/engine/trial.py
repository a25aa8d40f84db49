"""Tries out on a few tokens whether a model's caches can be stored and put back.

A class's name does not show that. Other servers restored state wrongly without
noticing; here a model that fails is refused before any work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from mlxlab.engine.kv_store import KVStore
from mlxlab.engine.working_cache import WorkingCache
from mlxlab.errors import ModelError
from mlxlab.models.layout import Windows
from mlxlab.prompt import Tokens
from mlxlab.strategies import Commit, Keep, Put, Span

__all__ = ["try_out"]

#: Tokens in front of the cut, and behind it.
_BEFORE, _BEHIND = 23, 17
_CHUNK = 9

#: Windows up to this size are filled before the cut.
_SMALL_WINDOW = 128

#: Largest difference of logits from another chunk size, of their largest value. Half
#: precision keeps two to three decimal digits, and errors add up over layers.
_NOISE = {mx.float32: 1e-3}
_HALF_NOISE = 0.04

#: Differences of restored caches below this share of the largest logit are rounding.
_ROUNDING = 1e-3


def try_out(model: Any) -> None:
    """Compute some tokens whole, in chunks, and from restored caches.

    Args:
        model: from mlx-lm, with its weights.

    Raises:
        ModelError: the model keeps a cache of an unknown class, its answers depend on
            chunks, restored caches give other answers, or it raises anything itself.
    """
    try:
        fresh = WorkingCache.of(model)
        window = min(fresh.windows, default=0)
        cut = _BEFORE + (window if window <= _SMALL_WINDOW else 0)
        tokens = np.arange(1, cut + _BEHIND + 1, dtype=np.int32)
        logits = fresh.compute(model, tokens)[0, cut:]
        most = _NOISE.get(logits.dtype, _HALF_NOISE)
        whole = logits.astype(mx.float32)
        chunked = _computed(model, WorkingCache.of(model), tokens, _CHUNK)[cut:]
        noise, scale = _difference(whole, chunked), _largest(whole)
        if not noise <= most * scale:
            raise ModelError(
                "its answers depend on the size of the chunks that a prompt is "
                "computed in, so none can be reused exactly"
            )
        for windows in Windows if window else (Windows.CHECKPOINTS,):
            for restored in _restored(model, tokens, cut, windows):
                if not _difference(whole, restored) <= 4 * noise + _ROUNDING * scale:
                    raise ModelError(
                        "its caches cannot be restored: a cut and resumed prompt gives "
                        "other answers than a computed one"
                    )
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"its caches cannot be tried out: {why}") from error


def _computed(model: Any, caches: WorkingCache, tokens: Tokens, chunk: int) -> mx.array:
    """Return the logits of the tokens that are missing, float32 ``[n, vocabulary]``."""
    rows = []
    while caches.position < len(tokens):
        piece = tokens[caches.position : caches.position + chunk]
        rows.append(caches.compute(model, piece)[0].astype(mx.float32))
    return mx.concatenate(rows)


def _restored(
    model: Any, tokens: Tokens, cut: int, windows: Windows
) -> Iterator[mx.array]:
    """Yield the logits behind the cut from caches that were stored and put back.

    One checkpoint is taken in a prefill, another one step back while decoding. Both
    have to stay as they were although the sequence goes on.
    """
    first = WorkingCache.of(model, windows)
    store = KVStore()
    middle = cut // 2
    first.compute(model, tokens[:middle])
    taken = {} if first.resumable else {middle: first.checkpoint(middle)}
    first.compute(model, tokens[middle : cut - 1])
    decode = first.decoder(model)
    for at in (cut - 1, cut):  # a step further than is stored
        mx.eval(decode(mx.array(tokens[at : at + 1])[None], cache=first.layers))
    keep = () if first.resumable else (Keep(1, middle), Keep(2, cut))
    store.apply(Commit(put=(Put(1, 0, cut),), keep=keep), first, taken)
    first.compute(model, tokens[cut + 1 :])
    for handle, stop in ((1, middle), (2, cut)):
        caches = WorkingCache.of(model, windows)
        resume = None if caches.resumable else handle
        store.restore([Span(1, 0, 0, stop)], caches, resume)
        yield _computed(model, caches, tokens, _CHUNK)[cut - stop :]


def _difference(a: mx.array, b: mx.array) -> float:
    # Some models mask tokens out with infinite logits.
    return float(mx.where(a == b, 0, mx.abs(a - b)).max())


def _largest(logits: mx.array) -> float:
    return float(mx.where(mx.isinf(logits), 0, mx.abs(logits)).max())
