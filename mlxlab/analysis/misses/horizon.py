"""How far back misses are explained from, where requests come for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxlab.replay.bounds import UNLIMITED

__all__ = ["ENDLESS", "Horizon"]


@dataclass(frozen=True, slots=True)
class Horizon:
    """The most that is remembered of earlier requests; the oldest is forgotten first.

    Attributes:
        tokens: in all sequences.
        sequences: that no other extends; sessions likewise.
        requests: that may be named as evicting others.
    """

    tokens: int
    sequences: int
    requests: int

    def beyond(self, lengths: Sequence[int]) -> int:
        """Return how many of the oldest sequences to forget; the latest one stays.

        Args:
            lengths: of all sequences, the oldest first.
        """
        total = 0
        for kept, length in enumerate(reversed(lengths)):
            total += length
            if kept and (total > self.tokens or kept >= self.sequences):
                return len(lengths) - kept
        return 0


#: Everything is remembered, as a trace has an end.
ENDLESS = Horizon(UNLIMITED, UNLIMITED, UNLIMITED)
