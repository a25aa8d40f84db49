"""What follows an edit, found by comparing token ids.

Knows ids only: nothing of segments and what they stand for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

import numpy as np

from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.strategies.approximate import Moving, Naive
from mlxlab.strategies.sequences.hashing import window_hashes
from mlxlab.strategies.sequences.matches import Donor, Run

__all__ = ["Suffix", "SuffixNaive"]


class Suffix(Moving):
    """Moves what is the same before and after an edit, in order.

    The rest of the prompt is compared with each donor from where the two part. Equal
    windows that are unique on both sides, as in patience diff, are extended to runs
    token by token; of runs that cross, the longer one is kept. The donor that gives
    most is used, the latest among equals.

    Takes the parameters of :class:`Moving`.
    """

    name = "suffix"
    summary = "paged, and what follows an edit, moved; approximate"

    def _find(self, prompt: Prompt, start: int) -> Iterable[list[Run]]:
        width = (self.run + 1) // 2
        for donor in reversed(self._donors):
            yield _in_order(_common_runs(prompt.tokens, start, donor, width))


class SuffixNaive(Naive, Suffix):
    """The original idea: cut out what was edited and keep the cache behind it."""

    name = "suffix-naive"
    summary = "suffix without rotation, recomputation or limits: wrong answers"


def _common_runs(tokens: Tokens, start: int, donor: Donor, width: int) -> Iterator[Run]:
    """Longest common runs from ``start`` on around windows of ``width`` tokens.

    Every run of twice the width holds one of the donor's windows, which do not overlap.
    """
    parting = common_prefix(tokens, donor.tokens)
    ours, theirs = tokens[start:], donor.tokens[parting:]
    ends: dict[int, int] = {}  # of the last run, by shift
    for position, origin in _anchors(ours, theirs, width):
        shift = position - origin
        if position < ends.get(shift, 0):  # found already
            continue
        behind = common_prefix(ours[position:], theirs[origin:])
        ahead = common_prefix(ours[:position][::-1], theirs[:origin][::-1])
        ends[shift] = position + behind
        yield Run(
            donor, parting + origin - ahead, start + position - ahead, ahead + behind
        )


def _anchors(ours: Tokens, theirs: Tokens, width: int) -> list[tuple[int, int]]:
    """Positions of equal windows that occur once on either side, in our order.

    Equal hashes are taken for equal windows here; extending them to runs compares ids.
    """
    windows = window_hashes(ours, width)
    blocks, index, times = np.unique(
        window_hashes(theirs, width)[::width], return_index=True, return_counts=True
    )
    blocks, origins = blocks[times == 1], index[times == 1] * width
    if len(blocks) == 0:
        return []
    nearest = np.minimum(np.searchsorted(blocks, windows), len(blocks) - 1)
    equal = np.flatnonzero(blocks[nearest] == windows)
    found, index, times = np.unique(
        nearest[equal], return_index=True, return_counts=True
    )
    positions = equal[index[times == 1]]
    pairs = zip(positions.tolist(), origins[found[times == 1]].tolist(), strict=True)
    return sorted(pairs)


def _in_order(runs: Iterable[Run]) -> list[Run]:
    """Runs that stand in one order on both sides, the longest first to be kept."""
    kept: list[Run] = []
    for run in sorted(runs, key=lambda run: -run.length):
        i = bisect_right(kept, run.target, key=lambda other: other.target)
        if i > 0:
            run = run.cut(front=_overlap(kept[i - 1], run))
        if i < len(kept):
            run = run.cut(back=_overlap(run, kept[i]))
        if run.length > 0:
            kept.insert(i, run)
    return kept


def _overlap(before: Run, behind: Run) -> int:
    """Tokens by which ``before`` reaches into ``behind``, on either side."""
    in_prompt = before.stop - behind.target
    return max(in_prompt, in_prompt + behind.shift - before.shift, 0)
