"""Moving keys to other positions, and computing tokens at scattered ones.

mlx-lm's model code stays as it is. For the time of one pass, each layer's rotary
embedding gives every token a position of its own, and each layer's cache writes it
there. Whether that is right for a model is tried out on a few tokens, not guessed from
its name. Knows nothing of plans and strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, make_prompt_cache
from numpy.typing import NDArray

from mlxlab.errors import ModelError
from mlxlab.prompt import Tokens

__all__ = ["LayerCache", "Positions", "Rotary", "Written", "kept"]

Positions: TypeAlias = NDArray[np.intp]

_TRIAL_TOKENS, _TRIAL_SHIFT = 16, 300


class Rotary:
    """Access to the rotary embeddings of a model's layers.

    Args:
        model: from :func:`mlxlab.engine.load_model`.

    Raises:
        ModelError: it has none in a layer, or does not compute the same at other
            positions with rotated keys; the reason is named.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._attentions = [_attention(layer) for layer in model.layers]
        self._try_out()

    def move(self, layer: int, keys: mx.array, shift: int) -> mx.array:
        """Stored keys as they are some positions further on, computed in float32.

        Args:
            layer: whose keys they are.
            keys: after the rotation for where they were computed, shape
                ``[1, kv_heads, positions, head_dim]``.
            shift: in positions; may be negative.

        Returns:
            Shape and type of ``keys``.
        """
        if shift == 0:
            return keys
        positions = mx.full(keys.shape[2], shift, dtype=mx.int32)
        rope = self._attentions[layer].rope
        return _rotated(rope, keys.astype(mx.float32), positions).astype(keys.dtype)

    def compute(
        self, tokens: Tokens, positions: Positions, cache: Sequence[LayerCache]
    ) -> mx.array:
        """Run the model on tokens that stand at scattered positions, in one pass.

        Args:
            tokens: ids, shape ``[n]``.
            positions: of each, ascending.
            cache: what takes their keys and values, one a layer.

        Returns:
            Logits ``[1, n, vocabulary]``, not evaluated: what only some layers' keys
            are needed for is computed no further.
        """
        with self._placed(mx.array(positions, dtype=mx.int32), cache):
            logits: mx.array = self.model(mx.array(tokens)[None], cache=list(cache))
        return logits

    def scale(self, layer: int) -> float | None:
        """What the layer multiplies products of queries and keys by, if it tells."""
        scale: float | None = getattr(self._attentions[layer], "scale", None)
        return scale

    @contextmanager
    def _placed(
        self, positions: mx.array, cache: Sequence[LayerCache]
    ) -> Iterator[None]:
        ropes = [attention.rope for attention in self._attentions]
        try:
            for attention, rope, layer in zip(
                self._attentions, ropes, cache, strict=True
            ):
                attention.rope = _Placed(rope, positions, layer.rotated)
            yield
        finally:
            for attention, rope in zip(self._attentions, ropes, strict=True):
                attention.rope = rope

    def _try_out(self) -> None:
        """Compute some tokens at the start and further on: only keys may differ."""
        tokens = np.arange(_TRIAL_TOKENS, dtype=np.int32)
        plain = make_prompt_cache(self.model)
        expected = self.model(mx.array(tokens)[None], cache=plain)
        positions = np.arange(_TRIAL_TOKENS) + _TRIAL_SHIFT
        visible = np.arange(_TRIAL_SHIFT + _TRIAL_TOKENS) >= _TRIAL_SHIFT
        moved = []
        for layer in plain:
            roomy = KVCache()
            pad = [(0, 0), (0, 0), (_TRIAL_SHIFT, 0), (0, 0)]
            keys, values = kept(layer)
            roomy.state = (mx.pad(0 * keys, pad), mx.pad(0 * values, pad), 0)
            moved.append(Written(roomy, positions, visible))
        logits = self.compute(tokens, positions, moved)
        _require_close("its answers depend on absolute positions", expected, logits)
        for i, (before, after) in enumerate(zip(plain, moved, strict=True)):
            keys, _ = kept(before)
            rope = type(self._attentions[i].rope).__name__
            _require_close(
                f"its rotary embedding does not compose ({rope}, layer {i})",
                self.move(i, keys, _TRIAL_SHIFT),
                after.keys[..., _TRIAL_SHIFT:, :],
            )


@dataclass(slots=True)
class _Placed:
    """A rotary embedding that gives each token its own position."""

    rope: Callable[..., mx.array]
    positions: mx.array
    rotated: list[mx.array]

    def __call__(self, x: mx.array, offset: object = 0) -> mx.array:
        rotated = _rotated(self.rope, x, self.positions)
        self.rotated.append(rotated)
        return rotated


class LayerCache:
    """What stands in for a layer's cache during one scattered pass.

    Attributes:
        offset: read by the model for its rotary embedding, which ignores it here.
        rotated: the layer's queries and keys, in the order that the model made them.
    """

    offset = 0

    def __init__(self, cache: KVCache, positions: Positions) -> None:
        self.keys, self.values, _ = cache.state
        self.positions = mx.array(positions, dtype=mx.int32)
        self.stop = int(positions[-1]) + 1
        self.rotated: list[mx.array] = []

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Take in keys and values; return all that the tokens may attend to."""
        return self.keys[..., : self.stop, :], self.values[..., : self.stop, :]

    def make_mask(self, *_: object, **__: object) -> mx.array:
        """Who may attend to whom: bool ``[n, stop]``."""
        return mx.arange(self.stop)[None] <= self.positions[:, None]


class Written(LayerCache):
    """Writes into a KVCache that is long enough already.

    Args:
        cache: holds keys and values of all positions before the last of these.
        positions: ascending.
        visible: which positions of ``cache`` can be attended to; all if None.
    """

    def __init__(
        self,
        cache: KVCache,
        positions: Positions,
        visible: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(cache, positions)
        self._visible = None if visible is None else mx.array(visible[: self.stop])

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        # In place: the KVCache holds the same two arrays.
        self.keys[..., self.positions, :] = keys
        self.values[..., self.positions, :] = values
        return super().update_and_fetch(keys, values)

    def make_mask(self, *_: object, **__: object) -> mx.array:
        mask = super().make_mask()
        return mask if self._visible is None else mask & self._visible[None]


def kept(cache: KVCache) -> tuple[mx.array, mx.array]:
    """Keys and values of all positions that a cache has taken in."""
    keys, values, offset = cache.state
    return keys[..., :offset, :], values[..., :offset, :]


def _attention(layer: Any) -> Any:
    """The module of a layer that holds its rotary embedding."""
    found = [module for module in layer.modules() if hasattr(module, "rope")]
    if len(found) != 1:
        raise ModelError(
            "keys and values cannot be moved in this model: a layer has "
            f"{len(found) or 'no'} rotary embeddings where one is needed"
        )
    return found[0]


def _rotated(
    rope: Callable[..., mx.array], x: mx.array, positions: mx.array
) -> mx.array:
    """``x`` of shape ``[1, heads, n, head_dim]`` rotated for a position per token."""
    # On the batch axis every token has an offset of its own.
    tokens = x.transpose(2, 1, 0, 3)
    return rope(tokens, offset=positions).transpose(2, 1, 0, 3)


def _require_close(reason: str, expected: mx.array, got: mx.array) -> None:
    # Halves keep two to three decimal digits, and layers add their errors up.
    bound = 0.05 * mx.abs(expected.astype(mx.float32)).max()
    if not (mx.abs(expected - got) < bound).all().item():
        raise ModelError(f"keys and values cannot be moved in this model: {reason}")
