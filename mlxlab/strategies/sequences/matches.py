"""Runs of tokens that a prompt has in common with a cached sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mlxlab.prompt import Prompt, Tokens, common_prefix

__all__ = ["CachedSequence", "Run"]


@dataclass(frozen=True, slots=True, eq=False)
class CachedSequence:
    """An earlier sequence, as far as its keys and values may be moved.

    Attributes:
        prompt: its tokens and segments, up to a block more than is stored, so that the
            end of the last unit can be compared.
        stored: tokens that can be moved, whole blocks.
        block: tokens in a block.
    """

    prompt: Prompt
    stored: int
    block: int

    @property
    def tokens(self) -> Tokens:
        return self.prompt.tokens

    def within(self, other: CachedSequence, least: int) -> bool:
        """Whether all but fewer than ``least`` of its tokens begin ``other`` too."""
        mine, theirs = self.tokens[: self.stored], other.tokens[: other.stored]
        shared = common_prefix(mine, theirs) // self.block * self.block
        return self.stored - shared < least

    def head(self, stored: int) -> CachedSequence:
        """Return the first ``stored`` tokens, whole blocks."""
        if stored == self.stored:
            return self
        return CachedSequence(self.prompt.head(stored + self.block), stored, self.block)


@dataclass(frozen=True, slots=True)
class Run:
    """``length`` tokens at ``origin`` of a cached sequence and ``target`` of a prompt.

    They are contiguous in both, so all have one shift.
    """

    cached: CachedSequence
    origin: int
    target: int
    length: int

    @property
    def stop(self) -> int:
        """The position in the prompt behind its last token."""
        return self.target + self.length

    @property
    def shift(self) -> int:
        """Positions between its place in the prompt and in the cached sequence."""
        return self.target - self.origin

    def cut(self, front: int = 0, back: int = 0) -> Run:
        """Return the run without this many tokens at its ends.

        The length is negative if there are fewer.
        """
        return replace(
            self,
            origin=self.origin + front,
            target=self.target + front,
            length=self.length - front - back,
        )

    def continued(self, tokens: Tokens) -> Run | None:
        """Return the run with ``tokens`` if they come next in the cached sequence."""
        start = self.origin + self.length
        if not np.array_equal(self.cached.tokens[start : start + len(tokens)], tokens):
            return None
        return replace(self, length=self.length + len(tokens))

    def before(self, position: int) -> Run:
        """Return its stored part before ``position`` of the prompt."""
        unstored = self.origin + self.length - self.cached.stored
        return self.cut(back=max(self.stop - position, unstored, 0))
