"""Turns ids into text one at a time, with mlx-lm's streaming detokenizers.

No text is lost. mlx-lm, and with it mlx, is imported only on use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import StreamingDetokenizer, TokenizerWrapper

__all__ = ["Detokenizer", "MlxDetokenizer", "detokenizer_factory"]

#: The byte 0 as byte-level tokenizers print it. mlx-lm does not read it as a byte.
_NUL = "\u0100"


class Detokenizer(Protocol):
    """Turns the ids of one answer into text."""

    def feed(self, token: int) -> str:
        """Add an id and return the text that is now certain; never half a character."""
        ...

    def finish(self) -> str:
        """Return the remaining text, with U+FFFD for incomplete characters."""
        ...


class MlxDetokenizer:
    """An mlx-lm detokenizer whose joined pieces equal the tokenizer's decoding.

    mlx-lm's own classes drop spaces at the beginning, where an answer may have them.
    They also copy the whole text for every id.

    Args:
        prototype: copied, because each answer needs its own detokenizer.
    """

    def __init__(self, prototype: StreamingDetokenizer) -> None:
        from mlx_lm.tokenizer_utils import (
            NaiveStreamingDetokenizer,
            SPMStreamingDetokenizer,
        )

        self._inner = copy.copy(prototype)
        self._inner.reset()
        self._forgets = not isinstance(prototype, NaiveStreamingDetokenizer)
        self._trims = isinstance(prototype, SPMStreamingDetokenizer) and bool(
            prototype.trim_space
        )
        if self._forgets:
            # Text before the first piece keeps spaces; it counts as read.
            self._inner.text, self._inner.offset = ".", 1

    def feed(self, token: int) -> str:
        self._inner.add_token(token)
        return self._read()

    def finish(self) -> str:
        self._inner.finalize()
        return self._read()

    def _read(self) -> str:
        piece = self._inner.last_segment
        if self._forgets:
            self._inner.text, self._inner.offset = ".", 1
        if self._trims and piece:
            # SentencePiece puts one space in front of every text.
            piece, self._trims = piece.removeprefix(" "), False
        return str(piece)


def detokenizer_factory(tokenizer: TokenizerWrapper) -> Callable[[], Detokenizer]:
    """Return a function that makes a fresh detokenizer for each answer."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer

    prototype = tokenizer.detokenizer
    if isinstance(prototype, BPEStreamingDetokenizer):
        # Without this, ids that no token has would raise a TypeError.
        tokens = (token or "" for token in prototype.tokenmap)
        prototype.tokenmap = [token.replace(_NUL, "\0") for token in tokens]
    return partial(MlxDetokenizer, prototype)
