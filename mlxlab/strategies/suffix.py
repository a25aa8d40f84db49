"""Position-independent reuse of the text behind an edit, found by token ids."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

import numpy as np

from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.strategies.approximate import Approximate, Naive
from mlxlab.strategies.base import Example
from mlxlab.strategies.registry import register
from mlxlab.strategies.sequences.hashing import window_hashes
from mlxlab.strategies.sequences.matches import CachedSequence, Run

__all__ = ["Suffix", "SuffixNaive"]


@register
class Suffix(Approximate):
    """Moves the text that is the same before and after an edit, in order.

    The rest of the prompt is compared with each cached sequence from where the two
    part. Equal windows that are unique on both sides, as in patience diff, are extended
    to runs token by token. Of runs that cross, the longer one is kept. The cached
    sequence with the most tokens in runs is used, the latest among equals.

    CacheBlend (arXiv 2405.16444) and EPIC (arXiv 2410.15332) reuse text at other
    positions; they take chunk boundaries from the application instead of an edit.
    """

    name = "suffix"
    summary = "paged, and the text behind an edit moved; approximate"
    literature = "position-independent reuse (CacheBlend, EPIC)"
    rank = 60
    example = Example(
        {"block": 4, "capacity": 90, "run": 4, "head": 1, "tail": 1, "rewritten": 0}
    )

    def _find(self, prompt: Prompt, start: int) -> Iterable[list[Run]]:
        width = (self.run + 1) // 2
        for cached in reversed(self._cached):
            yield _in_order(_common_runs(prompt.tokens, start, cached, width))


@register
class SuffixNaive(Naive, Suffix):
    """Cuts the edited text out of the cache and keeps everything behind it."""

    name = "suffix-naive"
    summary = "suffix without rotation, recomputation or limits: wrong answers"
    literature = "full KV reuse, the control of CacheBlend"
    rank = 61
    example = Example({"block": 4, "capacity": 90})


def _common_runs(
    tokens: Tokens, start: int, cached: CachedSequence, width: int
) -> Iterator[Run]:
    """Yield the longest common runs from ``start`` on, by windows of ``width`` tokens.

    Every run of twice the width holds one of the windows of the cached sequence, which
    do not overlap.
    """
    parting = common_prefix(tokens, cached.tokens)
    ours, theirs = tokens[start:], cached.tokens[parting:]
    ends: dict[int, int] = {}  # of the last run, by shift
    for position, origin in _anchors(ours, theirs, width):
        shift = position - origin
        if position < ends.get(shift, 0):  # found already
            continue
        behind = common_prefix(ours[position:], theirs[origin:])
        ahead = common_prefix(ours[:position][::-1], theirs[:origin][::-1])
        ends[shift] = position + behind
        yield Run(
            cached, parting + origin - ahead, start + position - ahead, ahead + behind
        )


def _anchors(ours: Tokens, theirs: Tokens, width: int) -> list[tuple[int, int]]:
    """Return positions of equal windows that are unique on both sides, in our order.

    Equal hashes count as equal windows here; extending them to runs compares ids.
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
    """Return runs that are in one order on both sides, preferring the longest."""
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
    """Return the tokens by which ``before`` overlaps ``behind``, on either side."""
    in_prompt = before.stop - behind.target
    return max(in_prompt, in_prompt + behind.shift - before.shift, 0)
