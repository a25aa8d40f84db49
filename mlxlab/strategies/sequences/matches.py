"""Stretches of tokens that a prompt has in common with an earlier sequence.

Knows token ids and the size of blocks: no handles, no limits, no policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mlxlab.prompt import Prompt, Tokens, common_prefix

__all__ = ["Donor", "Run"]


@dataclass(frozen=True, slots=True, eq=False)
class Donor:
    """An earlier sequence, as far as its keys and values may be moved.

    Attributes:
        prompt: its tokens and segments, up to a block more than is stored: where the
            last unit ends tells whether it is the same.
        stored: tokens that can be moved, whole blocks.
        block: tokens in each.
    """

    prompt: Prompt
    stored: int
    block: int

    @property
    def tokens(self) -> Tokens:
        return self.prompt.tokens

    def within(self, other: Donor, least: int) -> bool:
        """Whether fewer than ``least`` of its tokens are not the start of ``other``."""
        mine, theirs = self.tokens[: self.stored], other.tokens[: other.stored]
        shared = common_prefix(mine, theirs) // self.block * self.block
        return self.stored - shared < least

    def head(self, stored: int) -> Donor:
        """Its first ``stored`` tokens, whole blocks."""
        if stored == self.stored:
            return self
        return Donor(self.prompt.head(stored + self.block), stored, self.block)


@dataclass(frozen=True, slots=True)
class Run:
    """``length`` tokens that stand at ``origin`` in a donor and ``target`` in a prompt.

    Contiguous in both, so all of one shift.
    """

    donor: Donor
    origin: int
    target: int
    length: int

    @property
    def stop(self) -> int:
        """The position in the prompt behind its last token."""
        return self.target + self.length

    @property
    def shift(self) -> int:
        """How many positions further it stands in the prompt."""
        return self.target - self.origin

    def cut(self, front: int = 0, back: int = 0) -> Run:
        """Without so many tokens at either end; a negative length if too many."""
        return replace(
            self,
            origin=self.origin + front,
            target=self.target + front,
            length=self.length - front - back,
        )

    def continued(self, tokens: Tokens) -> Run | None:
        """Longer by ``tokens`` if the donor goes on with them too."""
        start = self.origin + self.length
        if not np.array_equal(self.donor.tokens[start : start + len(tokens)], tokens):
            return None
        return replace(self, length=self.length + len(tokens))

    def before(self, position: int) -> Run:
        """What of it is stored and stands before ``position`` in the prompt."""
        unstored = self.origin + self.length - self.donor.stored
        return self.cut(back=max(self.stop - position, unstored, 0))
