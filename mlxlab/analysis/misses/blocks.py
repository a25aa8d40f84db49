"""The blocks of a prompt, and the text that two prompts have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxlab.analysis.misses.predecessors import grams
from mlxlab.prompt import GLUE_ROLES, Prompt, Segment, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Decode",
    "Mask",
    "PromptBlocks",
    "is_thinking",
    "make_decode",
    "occurring",
    "pair_blocks",
]

Decode: TypeAlias = Callable[[Tokens], str]
"""Returns the text of ids, without special tokens."""


def make_decode(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Return what decodes the ids of a tokenizer."""

    def decode(tokens: Tokens) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    return decode


Mask: TypeAlias = NDArray[np.bool_]


class PromptBlocks:
    """A prompt and the texts of its blocks."""

    def __init__(self, prompt: Prompt, decode: Decode) -> None:
        self.prompt = prompt
        self._decode = decode
        self._texts: dict[Segment, str] = {}

    def blocks(self, start: int) -> list[Segment]:
        """Return the blocks whose text ends after ``start``, without template text."""
        found = [s for s in self.prompt.segments if s.stop > start]
        if found and found[0].start < start:
            rest = self._decode(self.prompt.tokens[start : found[0].stop])
            found = found if rest.strip() else found[1:]
        return [s for s in found if s.role not in GLUE_ROLES]

    def ids(self, segment: Segment) -> Tokens:
        return self.prompt.tokens[segment.start : segment.stop]

    def text(self, segment: Segment | None) -> str:
        """Return a block's text without outer white space; empty for None."""
        if segment is None:
            return ""
        if segment not in self._texts:
            self._texts[segment] = self._decode(self.ids(segment)).strip()
        return self._texts[segment]

    def text_around(self, position: int, width: int, start: int) -> str:
        """Return the text ``width`` tokens around a position, from ``start`` on."""
        first = max(start, position - width)
        return self._decode(self.prompt.tokens[first : position + width])


def is_thinking(segment: Segment) -> bool:
    """Return whether a block is the assistant's thinking."""
    return _kind(segment) in {"messages.thinking", "messages.redacted_thinking"}


def pair_blocks(
    olds: Sequence[Segment], news: Sequence[Segment]
) -> tuple[list[tuple[Segment | None, Segment]], list[Segment]]:
    """Pair each later block with the earlier one of its kind.

    Returns:
        The pairs, and the earlier blocks that were not paired.
    """
    left = list(olds)
    pairs: list[tuple[Segment | None, Segment]] = []
    for new in news:
        same = (s for s in left if s.role is new.role and _kind(s) == _kind(new))
        old = next(same, None)
        if old is not None:
            left.remove(old)
        pairs.append((old, new))
    return pairs, left


def occurring(ids: Tokens, source: Tokens) -> Mask:
    """Return which ids are in a run of tokens that ``source`` contains too."""
    own = grams(ids)
    known = np.zeros(len(ids), np.bool_)
    width = len(ids) - len(own) + 1
    for place in np.flatnonzero(np.isin(own, grams(source))):
        known[place : place + width] = True
    return known


def _kind(segment: Segment) -> str:
    """Return the label without numbers: ``messages.tool_result``, ``tools:Bash``."""
    return re.sub(r"\[\d+\]", "", segment.label)
