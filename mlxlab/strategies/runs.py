"""Stretches of tokens that a prompt has in common with an earlier sequence.

Knows token ids and digests of blocks: no handles, no limits, no policy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mlxlab.prompt import Prompt, Tokens

__all__ = ["Donor", "Run"]


@dataclass(frozen=True, slots=True, eq=False)
class Donor:
    """An earlier sequence, as far as its keys and values may be moved.

    Attributes:
        prompt: its tokens and segments, up to a block more than is stored: where the
            last unit ends tells whether it is the same.
        chain: chained digests of its stored blocks.
        block: tokens in each.
    """

    prompt: Prompt
    chain: tuple[bytes, ...]
    block: int

    @property
    def tokens(self) -> Tokens:
        return self.prompt.tokens

    @property
    def stored(self) -> int:
        """Tokens that can be moved."""
        return len(self.chain) * self.block

    def within(self, other: Donor, least: int) -> bool:
        """Whether fewer than ``least`` of its tokens are not the start of ``other``."""
        pairs = list(zip(self.chain, other.chain, strict=False))
        # Chained digests never agree again after a gap.
        shared = bisect_left(pairs, True, key=lambda pair: pair[0] != pair[1])
        return self.stored - shared * self.block < least

    def head(self, blocks: int) -> Donor:
        """Its first ``blocks``."""
        if blocks == len(self.chain):
            return self
        prompt = self.prompt.head((blocks + 1) * self.block)
        return Donor(prompt, self.chain[:blocks], self.block)


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

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """The donor's blocks that it lies in, in order.

        Yields:
            Index of a block, and where in it the run's part starts and stops.
        """
        size, stop = self.donor.block, self.origin + self.length
        for i in range(self.origin // size, -(-stop // size)):
            start = i * size
            yield i, max(self.origin - start, 0), min(stop - start, size)
