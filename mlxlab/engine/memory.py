"""One budget for weights, stored and working caches, and all that a prefill needs.

All methods but :attr:`Memory.peak` must run on the worker thread.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generation_stream
from scipy.optimize import nnls

__all__ = ["LEAST", "Memory"]

#: Share of the budget that mlx may keep of freed buffers.
_FREED = 0.05
#: Share that is left for what is not foreseen: steps of answers, caches that join.
_UNSEEN = 0.2
#: Chunks from which the bytes beside the caches are estimated.
_REMEMBERED = 64
#: What an estimate is taken for more, because the next chunk lies further on.
_CAUTION = 1.25
#: Tokens of the first chunk, from which nothing is known yet.
_FIRST = 256
#: Tokens of a chunk that shows what longer ones need.
_TELLING = 64
#: Tokens of the shortest chunk.
LEAST = 16


class Memory:
    """Counts bytes by mlx's own account.

    What the computation of a chunk needs beside its caches grows with the chunk and,
    where attention is not fused, with the position. Both are fitted to the chunks so
    far, and a chunk is made as short as the room that is left demands.

    Args:
        budget: most bytes, beside what this process holds by now.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._before = mx.get_active_memory()
        self._peak = 0
        self._chunks: defaultdict[int, deque[tuple[int, int, int]]] = defaultdict(
            lambda: deque(maxlen=_REMEMBERED)
        )
        mx.set_cache_limit(int(budget * _FREED))

    @property
    def usable(self) -> int:
        """Bytes that may be planned with."""
        return int(self.budget * (1 - _FREED - _UNSEEN))

    @property
    def room(self) -> int:
        """Bytes that are free now."""
        return self.usable - (mx.get_active_memory() - self._before)

    @property
    def peak(self) -> int:
        """Most bytes in use at the chunks so far."""
        return self._peak

    def settle(self) -> None:
        """Wait for steps of answers that have ended; until then they hold arrays."""
        mx.synchronize(generation_stream)

    def begin(self) -> None:
        """Begin to measure a chunk."""
        self._note_peak()
        mx.reset_peak_memory()

    def record(self, model: Any, tokens: int, stop: int) -> None:
        """Record what a chunk needed beside the caches that it has filled.

        Args:
            model: that computed it.
            tokens: of the chunk.
            stop: position behind it.
        """
        self._note_peak()
        if tokens >= _TELLING:
            beside = mx.get_peak_memory() - mx.get_active_memory()
            self._chunks[id(model)].append((tokens, stop, max(beside, 0)))

    def needed(self, model: Any, tokens: int, stop: int) -> int:
        """Estimate the bytes that a chunk needs beside the caches.

        Args:
            model: that computes it.
            tokens: of the chunk.
            stop: position behind it.
        """
        chunks = self._chunks[id(model)]
        if not chunks:
            return 0
        lengths, stops, beside = np.array(chunks, dtype=float).T
        terms = np.stack([np.ones_like(stops), lengths, lengths * stops], axis=1)
        found, _ = nnls(terms, beside)
        return int(_CAUTION * found @ (1, tokens, tokens * stop))

    def chunk(self, model: Any, most: int, position: int, token_bytes: int) -> int:
        """Return the tokens that may be computed at once.

        Args:
            model: that computes them.
            most: at most this many.
            position: tokens in the caches.
            token_bytes: that the caches grow by for a token.
        """
        tokens = most if self._chunks[id(model)] else min(most, _FIRST)
        while tokens > LEAST:
            beside = self.needed(model, tokens, position + tokens)
            if beside + tokens * token_bytes <= self.room:
                break
            tokens //= 2
        return tokens

    def _note_peak(self) -> None:
        self._peak = max(self._peak, mx.get_peak_memory() - self._before)
