"""Cache layouts: what a model keeps for the tokens it has seen, and its sizes.

A layout is asked of the caches that a model makes (:mod:`mlxlab.engine.layout`), never
guessed from its configuration. It is plain data, so a simulation needs no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Self

from mlxlab.models.kv_bits import COMPUTED, KVBits

__all__ = ["CacheKind", "CacheLayout", "LayerCache", "Windows"]


class CacheKind(StrEnum):
    """How the cache of a layer grows, and where it can be cut."""

    TOKENS = "tokens"  # keys and values of each token, or latents: cut at any token
    WINDOW = "window"  # keys and values of the latest tokens only
    STATE = "state"  # a recurrent state of fixed size


class Windows(StrEnum):
    """How the store keeps window layers.

    ``TOKENS`` keeps all positions, so that a prompt can be resumed at any token.
    ``CHECKPOINTS`` keeps whole windows, at chosen tokens only.
    """

    TOKENS = "tokens"
    CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What some layers of one kind keep, each.

    Attributes:
        count: layers, or parts of layers, of this kind and size.
        kind: see :class:`CacheKind`.
        size: bytes of a token; of a state, bytes of the whole.
        window: tokens in a window; 0 for other kinds.
        keys: numbers of a token's keys, or latents, all heads; 0 if not known.
        values: numbers of its values, likewise.
    """

    count: int
    kind: CacheKind
    size: int
    window: int = 0
    keys: int = 0
    values: int = 0

    def at_rest(self, bits: KVBits) -> int:
        """Return the bytes of a token in a store.

        Where its numbers are not known, they are taken for 16 bits each and half of
        them for keys; then the bytes are rounded up.
        """
        if bits.is_full:
            return self.size
        if not self.keys + self.values:
            return ceil(bits.nbytes(self.size / 4, self.size / 4, 2))
        number = self.size // (self.keys + self.values)
        return round(bits.nbytes(self.keys, self.values, number))


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What all layers of a model keep.

    Attributes:
        layers: in order of first occurrence.
    """

    layers: tuple[LayerCache, ...]

    @classmethod
    def plain(cls, token_bytes: int, checkpoint_bytes: int = 0) -> Self:
        """Make a layout from two sizes.

        Args:
            token_bytes: bytes kept for each token.
            checkpoint_bytes: bytes of a state; 0 for a model without one.
        """
        state = LayerCache(1, CacheKind.STATE, checkpoint_bytes)
        tokens = LayerCache(1, CacheKind.TOKENS, token_bytes)
        return cls((tokens, state) if checkpoint_bytes else (tokens,))

    @property
    def windows(self) -> bool:
        """Whether some layers keep the latest tokens only."""
        return any(part.kind is CacheKind.WINDOW for part in self.layers)

    def token_bytes(
        self, windows: Windows = Windows.CHECKPOINTS, bits: KVBits = COMPUTED
    ) -> int:
        """Return the bytes that a store keeps for each token."""
        return sum(part.count * part.at_rest(bits) for part in self.tokens(windows))

    def tokens(self, windows: Windows = Windows.CHECKPOINTS) -> list[LayerCache]:
        """Return the layers of which a store keeps rows for each token."""
        kinds = {CacheKind.TOKENS}
        if windows == Windows.TOKENS:
            kinds.add(CacheKind.WINDOW)
        return [part for part in self.layers if part.kind in kinds]

    def checkpoint_bytes(self, windows: Windows = Windows.CHECKPOINTS) -> int:
        """Return the bytes of a checkpoint; 0 if every token can be resumed at."""
        total = 0
        for part in self.layers:
            if part.kind is CacheKind.STATE:
                total += part.count * part.size
            elif part.kind is CacheKind.WINDOW and windows == Windows.CHECKPOINTS:
                total += part.count * part.size * part.window
        return total
