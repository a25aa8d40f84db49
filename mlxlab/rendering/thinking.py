"""Puts reasoning back as it was generated, id for id, when a client returns it.

Works on the rendered text: whatever the template made of a thinking block, the ids in
its signature take the place from its opening tag to its closing one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlxlab.prompt import Tokens
from mlxlab.rendering.conversation import Conversation, Part, Turn
from mlxlab.rendering.marks import Extent
from mlxlab.rendering.signature import read_signature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Reasoning", "Splice", "find_splices", "read_reasoning"]


@dataclass(frozen=True, slots=True)
class Splice:
    """Ids that take the place of characters ``[start, stop)``.

    ``inside`` is the first character of the reasoning itself.
    """

    start: int
    inside: int
    stop: int
    tokens: Tokens

    @property
    def starts(self) -> NDArray[np.int64]:
        """A character for each id; those between the tags share one."""
        starts = np.full(len(self.tokens), self.inside, dtype=np.int64)
        starts[0] = self.start
        return starts


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Signed reasoning: its ids with both tags, the tags' text and what is between."""

    tokens: Tokens
    opening: str
    closing: str
    text: str

    def find(self, extent: Extent, text: str) -> Splice | None:
        """Where it stands in a rendering, given the extent of its text there."""
        start = text.rfind(self.opening, 0, extent.start + len(self.opening))
        end = text.find(self.closing, extent.stop - len(self.closing))
        inside = start + len(self.opening)
        # Between the tags the template prints this reasoning and white space.
        if start < 0 or end < 0 or text[inside:end].strip() != self.text.strip():
            return None
        first = max(inside, extent.start)
        return Splice(start, first, end + len(self.closing), self.tokens)


def read_reasoning(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, digest: str
) -> tuple[Conversation, Mapping[str, Reasoning]]:
    """Read the signatures of a conversation's thinking blocks.

    Args:
        conversation: as the client sent it.
        tokenizer: of the model that the prompt is for.
        digest: of that tokenizer.

    Returns:
        The conversation, with text where a client was sent none; reasoning by label.
        Blocks with another's signature, or edited ones, are left as they are.
    """
    found: dict[str, Reasoning] = {}

    def read(turn: Turn) -> Turn:
        part = turn.reasoning
        reasoning = _signed(part, tokenizer, digest) if part else None
        if part is None or reasoning is None:
            return turn
        found[part.label] = reasoning
        return replace(turn, reasoning=replace(part, text=reasoning.text))

    turns = tuple(map(read, conversation.turns))
    return replace(conversation, turns=turns), found


def find_splices(
    reasoning: Mapping[str, Reasoning], extents: Iterable[Extent], text: str
) -> Iterator[Splice]:
    """Where signed reasoning stands in a rendering, in order."""
    for extent in extents:
        signed = reasoning.get(extent.label)
        splice = signed.find(extent, text) if signed else None
        if splice:
            yield splice


def _signed(
    part: Part, tokenizer: PreTrainedTokenizerBase, digest: str
) -> Reasoning | None:
    tokens = read_signature(part.signature, digest) if part.signature else None
    if tokens is None or len(tokens) < 2 or not _in(tokens, len(tokenizer)):
        return None
    opening, text, closing = (
        str(tokenizer.decode(ids)) for ids in (tokens[:1], tokens[1:-1], tokens[-1:])
    )
    text = text.strip("\r\n")
    if part.text not in ("", text):
        return None
    return Reasoning(tokens, opening, closing, text)


def _in(tokens: Tokens, vocabulary: int) -> bool:
    return bool((tokens >= 0).all() and (tokens < vocabulary).all())
