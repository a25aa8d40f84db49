"""Tries out on a few tokens whether a model's caches can be stored and put back.

A class's name does not show that. Other servers restored state wrongly without
noticing; here a model that fails is refused before any work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from mlxlab.engine.batch import Batch
from mlxlab.engine.engine import device_name
from mlxlab.engine.kv_store import KVStore
from mlxlab.engine.samplers import Sampler
from mlxlab.engine.working_cache import WorkingCache
from mlxlab.errors import ModelError
from mlxlab.models.layout import Windows
from mlxlab.prompt import Tokens
from mlxlab.strategies import Commit, Keep, Put, Span

__all__ = ["conditions", "try_batch", "try_out"]

#: Tokens in front of the cut, and behind it.
_BEFORE, _BEHIND = 23, 17
_CHUNK = 9

#: Steps between two answers that join a batch.
_TOGETHER = 2

#: Windows up to this size are filled before the cut.
_SMALL_WINDOW = 128

#: Largest differences of logits, as shares of the largest: from another chunk size, and
#: from restored caches; of float32 models and of others. In half precision, rounding
#: alone sends some tokens to other experts, so only gross dependence on chunks shows.
_CHUNKED = {False: 1e-3, True: 0.25}
_RESTORED = {False: 1e-5, True: 2e-3}


def conditions() -> str:
    """Return the device and a digest of the engine's code.

    The trial of a model may end otherwise on another device, and after a change of the
    trial or of what it tries out.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return f"{device_name()}, {digest.hexdigest()[:16]}"


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
        half = _is_half(model)
        whole = fresh.compute(model, tokens)[0].astype(mx.float32)
        if mx.isnan(whole).any():
            raise ModelError("its answers are not numbers: its weights are damaged")
        chunked = _computed(model, WorkingCache.of(model), tokens)
        off = _differences(whole[cut:], chunked[cut:])
        if not (np.median(off) if half else off.max()) <= _CHUNKED[half]:
            raise ModelError(
                "its answers depend on the size of the chunks that a prompt is "
                "computed in, so none can be reused exactly"
            )
        for windows in Windows if window else (Windows.CHECKPOINTS,):
            for expected, restored in _restored(model, tokens, cut, windows):
                if not _differences(expected, restored).max() <= _RESTORED[half]:
                    raise ModelError(
                        "its caches cannot be restored: a cut and resumed prompt gives "
                        "other answers than a computed one"
                    )
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"its caches cannot be tried out: {why}") from error


def try_batch(model: Any) -> bool:
    """Decode prompts of unequal lengths together, and compare them with each alone.

    They join and leave at different times. One that has left goes on from its caches.

    Args:
        model: that :func:`try_out` has accepted.

    Returns:
        Whether answers of this model may share a batch. mlx-lm has no batched caches
        for some models, and wrong ones for others.
    """
    try:
        fresh = WorkingCache.of(model)
        if not fresh.mergeable:
            return False
        window = min(fresh.windows, default=0)
        longest = _BEFORE + (window if window <= _SMALL_WINDOW else 0)
        tokens = np.arange(1, longest + _BEHIND + 1, dtype=np.int32)
        alone = _computed(model, fresh, tokens)
        half = _is_half(model)
        for at, together in _decoded(
            model, tokens, (longest, _BEFORE // 2, longest - 5)
        ):
            off = _differences(_normal(alone[at : at + len(together)]), together)
            if not (np.median(off) if half else off.max()) <= _CHUNKED[half]:
                return False
    except (Exception, SystemExit):
        return False
    return True


def _decoded(
    model: Any, tokens: Tokens, cuts: Sequence[int]
) -> Iterator[tuple[int, mx.array]]:
    """Feed the tokens behind each cut in one batch, and the last ones afterwards.

    Yields:
        A position, and the log probabilities behind it and its successors.
    """
    batch = Batch(model, shared=True)
    seen: dict[int, list[mx.array]] = {cut: [] for cut in cuts}

    def sampler(cut: int) -> Sampler:
        def fed(logprobs: mx.array) -> mx.array:
            seen[cut].append(logprobs)
            return mx.array(tokens[cut + len(seen[cut]) - 1 : cut + len(seen[cut])])

        return fed

    numbers = {}
    for cut in cuts:
        caches = WorkingCache.of(model)
        _computed(model, caches, tokens[: cut - 1])
        numbers[cut] = batch.add(caches, int(tokens[cut - 1]), sampler(cut))
        for _ in range(_TOGETHER):
            batch.step()
    for cut in cuts:
        left = batch.remove(numbers[cut])
        yield cut - 1, mx.concatenate(seen[cut])
        at = left.position
        rest = left.compute(model, tokens[at : at + _TOGETHER])[0]
        yield at, _normal(rest.astype(mx.float32))
        batch.step()


def _normal(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _is_half(model: Any) -> bool:
    """Whether some weights, or the scales of packed ones, are of half precision."""
    weights: Any = tree_flatten(model.parameters())
    return any(weight.dtype in (mx.float16, mx.bfloat16) for _, weight in weights)


def _computed(
    model: Any, caches: WorkingCache, tokens: Tokens, stops: Sequence[int] = ()
) -> mx.array:
    """Return the logits of the tokens that are missing, float32 ``[n, vocabulary]``.

    Chunks end at ``stops`` and are small behind the last of them.
    """
    rows = []
    while (at := caches.position) < len(tokens):
        stop = next((stop for stop in stops if stop > at), at + _CHUNK)
        rows.append(caches.compute(model, tokens[at:stop])[0].astype(mx.float32))
    return mx.concatenate(rows)


def _restored(
    model: Any, tokens: Tokens, cut: int, windows: Windows
) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield logits behind a cut without a break, and from restored caches.

    One checkpoint is taken in a prefill, another one step back while decoding. Both
    have to stay as they were although the sequence goes on. The chunks of both runs
    are the same, so that not even rounding differs.
    """
    first = WorkingCache.of(model, windows)
    store = KVStore()
    middle = cut // 2
    first.compute(model, tokens[:middle])
    taken = {} if first.resumable else {middle: first.checkpoint(middle)}
    first.compute(model, tokens[middle : cut - 1])
    for at in (cut - 1, cut):  # a step further than is stored
        first.compute(model, tokens[at : at + 1])
    keep = () if first.resumable else (Keep(1, middle), Keep(2, cut))
    store.apply(Commit(put=(Put(1, 0, cut),), keep=keep), first, taken)
    first.compute(model, tokens[cut + 1 :])
    for handle, stops in ((1, (middle,)), (2, (middle, cut - 1, cut))):
        caches = WorkingCache.of(model, windows)
        resume = None if caches.resumable else handle
        store.restore([Span(1, 0, 0, stops[-1])], caches, resume)
        unbroken = _computed(model, WorkingCache.of(model), tokens, stops)
        yield unbroken[stops[-1] :], _computed(model, caches, tokens)


def _differences(a: mx.array, b: mx.array) -> NDArray[np.float32]:
    """Return the largest difference of each token, as a share of the largest logit."""
    # Some models mask tokens out with infinite logits.
    largest = mx.where(mx.isinf(a), 0, mx.abs(a)).max()
    different = mx.where(a == b, 0, mx.abs(a - b)).max(axis=1)
    return np.array(different / mx.maximum(largest, 1e-9))
