"""Ids to text, one at a time: mlx-lm's streaming detokenizers, nothing lost.

Knows nothing of what the text means. Imports mlx-lm, and so mlx, only when asked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import StreamingDetokenizer, TokenizerWrapper

__all__ = ["Detokenizer", "MlxDetokenizer", "detokenizer_factory"]

#: How byte-level tokenizers print the byte 0, which mlx-lm takes for no byte at all.
_NUL = "\u0100"


class Detokenizer(Protocol):
    """Turns the ids of one answer into text."""

    def feed(self, token: int) -> str:
        """The text that is certain now; never half a character."""
        ...

    def finish(self) -> str:
        """The rest, with U+FFFD for what no id completed."""
        ...


class MlxDetokenizer:
    """A detokenizer of mlx-lm whose pieces, joined, are what the tokenizer decodes.

    mlx-lm's own drop spaces at the beginning, which an answer may well start with,
    and copy all text so far for every id.

    Args:
        prototype: is copied, because each answer needs its own.
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
            # Text before the first keeps spaces; it counts as read.
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
            # Sentencepiece puts one space in front of any text.
            piece, self._trims = piece.removeprefix(" "), False
        return str(piece)


def detokenizer_factory(tokenizer: TokenizerWrapper) -> Callable[[], Detokenizer]:
    """What makes a fresh detokenizer for each answer."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer

    prototype = tokenizer.detokenizer
    if isinstance(prototype, BPEStreamingDetokenizer):
        # Ids that no token has would end an answer with a TypeError.
        tokens = (token or "" for token in prototype.tokenmap)
        prototype.tokenmap = [token.replace(_NUL, "\0") for token in tokens]
    return partial(MlxDetokenizer, prototype)
