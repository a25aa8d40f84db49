"""Moves keys to other positions, and computes tokens at scattered positions.

mlx-lm's model code stays unchanged. During one pass, each layer's rotary embedding
gives every token its own position, and each layer's cache writes the token there. A
trial run on a few tokens checks that this is right for a model.
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

__all__ = ["LayerCache", "Positions", "Rope", "WritableCache", "kept"]

Positions: TypeAlias = NDArray[np.intp]

_TRIAL_TOKENS, _TRIAL_SHIFT = 16, 300
_UNMOVABLE = "keys and values cannot be moved in this model"


class Rope:
    """The rotary position embeddings of a model's layers.

    Args:
        model: from :func:`mlxlab.engine.load_model`.

    Raises:
        ModelError: a layer has no rotary embedding, or the model computes other
            results with moved keys. The message gives the reason.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        try:
            _require_plain(model)
            self._attentions = [_attention(layer) for layer in model.layers]
            self._try_out()
        except ModelError:
            raise
        except Exception as error:
            # The trial gives the model's own code caches that it does not expect.
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(f"{_UNMOVABLE}: {why}") from error

    def move(self, layer: int, keys: mx.array, shift: int) -> mx.array:
        """Rotate stored keys by a shift, in float32.

        Args:
            layer: index of the keys' layer.
            keys: keys after the rotation for their original positions, shape
                ``[1, kv_heads, positions, head_dim]``.
            shift: in positions; may be negative.

        Returns:
            Moved keys, with the shape and type of ``keys``.
        """
        if shift == 0:
            return keys
        positions = mx.full(keys.shape[2], shift, dtype=mx.int32)
        rope = self._attentions[layer].rope
        return _rotated(rope, keys.astype(mx.float32), positions).astype(keys.dtype)

    def compute(
        self, tokens: Tokens, positions: Positions, cache: Sequence[LayerCache]
    ) -> mx.array:
        """Run the model on tokens at scattered positions, in one pass.

        Args:
            tokens: ids, shape ``[n]``.
            positions: one per token, ascending.
            cache: receives the keys and values, one per layer.

        Returns:
            Logits ``[1, n, vocabulary]``, not evaluated. A caller that needs the keys
            of
            some layers only pays for those layers.
        """
        with self._placed(mx.array(positions, dtype=mx.int32), cache):
            logits: mx.array = self.model(mx.array(tokens)[None], cache=list(cache))
        return logits

    def scale(self, layer: int) -> float | None:
        """Return the scale of a layer's attention scores; None if it has none."""
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
                attention.rope = _PlacedRope(rope, positions, layer.rotated)
            yield
        finally:
            for attention, rope in zip(self._attentions, ropes, strict=True):
                attention.rope = rope

    def _try_out(self) -> None:
        """Compute some tokens at two offsets: only the keys may differ."""
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
            moved.append(WritableCache(roomy, positions, visible))
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
class _PlacedRope:
    """A rotary embedding that gives each token its own position."""

    rope: Callable[..., mx.array]
    positions: mx.array
    rotated: list[mx.array]

    def __call__(self, x: mx.array, offset: object = 0) -> mx.array:
        rotated = _rotated(self.rope, x, self.positions)
        self.rotated.append(rotated)
        return rotated


class LayerCache:
    """Replaces a layer's cache during one scattered pass.

    Attributes:
        offset: 0; the model passes it to its rotary embedding, which ignores it here.
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
        """Return all keys and values that the tokens may attend to."""
        return self.keys[..., : self.stop, :], self.values[..., : self.stop, :]

    def make_mask(self, *_: object, **__: object) -> mx.array:
        """Return the attention mask: bool ``[n, stop]``."""
        return mx.arange(self.stop)[None] <= self.positions[:, None]


class WritableCache(LayerCache):
    """Writes into a KVCache that is already long enough.

    Args:
        cache: holds keys and values of all positions before the last of
            ``positions``.
        positions: ascending.
        visible: mask of the positions of ``cache`` to attend to; all if None.
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
    """Return the keys and values of all filled positions of a cache."""
    keys, values, offset = cache.state
    return keys[..., :offset, :], values[..., :offset, :]


def _require_plain(model: Any) -> None:
    """Require one KVCache per layer."""
    kinds = [type(cache).__name__ for cache in make_prompt_cache(model)]
    if other := sorted({*kinds} - {KVCache.__name__}):
        raise ModelError(f"{_UNMOVABLE}: its layers keep {', '.join(other)}")
    if len(kinds) != len(model.layers):
        raise ModelError(
            f"{_UNMOVABLE}: it has {len(kinds)} caches for {len(model.layers)} layers"
        )


def _attention(layer: Any) -> Any:
    """Return the module of a layer that holds its rotary embedding."""
    found = [module for module in layer.modules() if hasattr(module, "rope")]
    if len(found) != 1:
        raise ModelError(
            f"{_UNMOVABLE}: a layer has "
            f"{len(found) or 'no'} rotary embeddings where one is needed"
        )
    return found[0]


def _rotated(
    rope: Callable[..., mx.array], x: mx.array, positions: mx.array
) -> mx.array:
    """Rotate ``x`` of shape ``[1, heads, n, head_dim]`` by one position per token."""
    # On the batch axis every token has its own offset.
    tokens = x.transpose(2, 1, 0, 3)
    return rope(tokens, offset=positions).transpose(2, 1, 0, 3)


def _require_close(reason: str, expected: mx.array, got: mx.array) -> None:
    # Half precision keeps two to three decimal digits, and errors add up over layers.
    bound = 0.05 * mx.abs(expected.astype(mx.float32)).max()
    if not (mx.abs(expected - got) < bound).all().item():
        raise ModelError(f"{_UNMOVABLE}: {reason}")
