"""The caches of one sequence while it is computed.

Everything here evaluates arrays and must run on the worker thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxlab.engine.layer_caches import (
    CacheView,
    Snapshot,
    StateCache,
    TokenCache,
    TokenRows,
    WindowCache,
    flatten,
    with_windows,
)
from mlxlab.errors import IntegrityError
from mlxlab.models.layout import Windows
from mlxlab.prompt import Tokens

__all__ = ["Checkpoint", "Mark", "WorkingCache"]

Checkpoint: TypeAlias = tuple[Snapshot, ...]
"""The state and the windows of all layers behind one position."""

Mark: TypeAlias = tuple[int, "_States", tuple[Any, ...]]

_States: TypeAlias = dict[int, list[Snapshot]]


class WorkingCache:
    """The caches of all layers, and the number of tokens that they have seen.

    Args:
        layers: mlx-lm's caches, one per layer, as the model takes them.
        windows: how window layers are kept.

    Attributes:
        layers: see above; windows that keep all tokens are replaced.
        position: tokens seen.

    Raises:
        ModelError: a cache of an unknown class.
    """

    def __init__(
        self, layers: Sequence[Any], windows: Windows = Windows.CHECKPOINTS
    ) -> None:
        self.layers = with_windows(layers, windows)
        self._parts: list[CacheView] = list(flatten(self.layers))
        self._rest = [p for p in self._parts if isinstance(p, StateCache | WindowCache)]
        offsets = (p.cache.offset for p in self._parts if type(p) is TokenCache)
        self.position: int = max(offsets, default=0)
        self._states: _States = {}  # in front of the last single tokens

    @classmethod
    def of(cls, model: Any, windows: Windows = Windows.CHECKPOINTS) -> Self:
        """Make empty caches for a model."""
        return cls(make_prompt_cache(model), windows)

    @property
    def tokens(self) -> list[TokenCache]:
        """The caches that hold rows of every position."""
        return [part for part in self._parts if isinstance(part, TokenCache)]

    @property
    def windows(self) -> list[int]:
        """Sizes of the windows that are stored whole, in tokens."""
        return [part.size for part in self._rest if isinstance(part, WindowCache)]

    @property
    def resumable(self) -> bool:
        """Whether the sequence can be cut at any token."""
        return not self._rest

    @property
    def mergeable(self) -> bool:
        """Whether mlx-lm has batched caches for all of these."""
        return all(part.mergeable for part in self._parts)

    def compute(self, model: Any, tokens: Tokens) -> mx.array:
        """Compute tokens behind the last position.

        Args:
            model: the model of these caches.
            tokens: ids, shape ``[n]``.

        Returns:
            Logits ``[1, n, vocabulary]``, not evaluated: most callers only need the
            caches.
        """
        self._step(len(tokens))
        logits: mx.array = model(mx.array(tokens)[None], cache=self.layers)
        self.evaluate()
        mx.clear_cache()
        return logits

    def _step(self, tokens: int) -> None:
        """Count tokens; keep the state in front of a single one."""
        if tokens > 1:
            self._states.clear()
        elif self._rest:
            states = [p.mark() for p in self._rest if isinstance(p, StateCache)]
            self._states[self.position] = states
            self._states.pop(self.position - 2, None)
        self.position += tokens

    def settle(self, position: int, states: list[Snapshot]) -> None:
        """Take over what a batch has decoded.

        Args:
            position: tokens seen by now.
            states: of all recurrent layers, in front of the last token.
        """
        self.position = position
        self._states = {position - 1: states}

    def release(self) -> None:
        """Let all arrays go; the position stays."""
        self.layers, self._parts, self._rest = [], [], []
        self._states.clear()

    def evaluate(self) -> None:
        """Evaluate all arrays."""
        mx.eval([array for part in self._parts for array in part.arrays()])

    def checkpoint(self, position: int) -> Checkpoint:
        """Return the state and windows behind a position.

        Args:
            position: the last, or the one before if a single token was computed since:
                decoding runs a step ahead, and a prompt's last token is not stored.

        Raises:
            IntegrityError: they have moved further.
        """
        back = self.position - position
        if not 0 <= back <= 1 or (back and position not in self._states):
            raise IntegrityError(
                f"caches: at {self.position}, asked for the state at {position}"
            )
        earlier = iter(self._states[position] if back else ())
        found = []
        for part in self._rest:
            if isinstance(part, WindowCache):
                found.append(part.snapshot(position))
            else:
                found.append(part.snapshot(next(earlier, None)))
        mx.eval([array for parts in found for array in parts if array is not None])
        return tuple(found)

    def resume(self, checkpoint: Checkpoint, position: int) -> None:
        """Put the state and windows behind a position back.

        Raises:
            IntegrityError: the rows of another number of positions are in place.
        """
        for part, snapshot in zip(self._rest, checkpoint, strict=True):
            if isinstance(part, WindowCache):
                part.restore(snapshot, position)
            else:
                part.restore(snapshot)
        if self.position != position:
            raise IntegrityError(
                f"caches: {self.position} tokens restored, checkpoint at {position}"
            )

    def append(self, rows: Sequence[TokenRows | None], length: int) -> None:
        """Put stored rows behind the last position.

        Args:
            rows: one for each of :attr:`tokens`; None for a cache that stays empty.
            length: positions of the rows.
        """
        for part, own in zip(self.tokens, rows, strict=True):
            if own is not None:
                part.append(own)
        self.position += length

    def rows(self) -> list[TokenRows | None]:
        """Return the rows of all positions, one for each of :attr:`tokens`."""
        return [part.rows() for part in self.tokens]

    def mark(self) -> Mark:
        """Return what :meth:`rewind` needs to come back to now."""
        parts = tuple(part.mark() for part in self._parts)
        return self.position, dict(self._states), parts

    def rewind(self, mark: Mark) -> None:
        """Forget everything since a mark."""
        self.position, states, marks = mark
        self._states = dict(states)
        for part, own in zip(self._parts, marks, strict=True):
            part.rewind(own)
