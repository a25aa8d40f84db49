"""What a comparison comes to, in a few sentences."""

from __future__ import annotations

import pandas as pd

from mlxlab.analysis.tables import spec_names, summarize
from mlxlab.replay.bounds import InfiniteMemory
from mlxlab.strategies.none import NoReuse

__all__ = ["conclude"]


def conclude(rows: pd.DataFrame) -> list[str]:
    """The best strategy, what it gains, and what is left to gain; a line each.

    The most reused tokens win; among equals a strategy that holds several sequences,
    then the one that stores least.

    Args:
        rows: from :func:`mlxlab.compare`.
    """
    own = rows[rows.strategy != InfiniteMemory.name]
    if own.empty:
        return []
    summary = summarize(rows).loc[list(dict.fromkeys(spec_names(own)))]
    ranked = summary.assign(several=_hold_several(rows)).sort_values(
        ["reused", "several", "stored_mib"], ascending=[False, False, True]
    )
    best = ranked.iloc[0]
    return [
        f"Best: {best.name} reuses {best.reused:.1%} of all prompt tokens"
        + _against(summary, str(best.name)),
        *_equals(ranked),
        _left(rows, best),
    ]


def _hold_several(rows: pd.DataFrame) -> pd.Series[bool]:
    """By spec, whether it holds several sequences at once."""
    specs = rows.attrs["manifest"]["strategies"]
    names = dict.fromkeys(spec_names(rows))
    most = [spec["max_sequences"] for spec in specs]
    several = [n is None or n > 1 for n in most]
    return pd.Series(dict(zip(names, several, strict=True)))


def _against(summary: pd.DataFrame, best: str) -> str:
    """What the first strategy named and no reuse come to, unless they are the best."""
    baselines = dict.fromkeys([summary.index[0], NoReuse.name])
    named = [name for name in baselines if name in summary.index and name != best]
    reused = ", ".join(f"{name} {summary.reused[name]:.1%}" for name in named)
    text = f" ({reused})" if named else ""
    if "ttft_median_s" not in summary or pd.isna(summary.ttft_median_s[best]):
        return f"{text}."
    others = ", ".join(f"{name} {summary.ttft_median_s[name]:.2f} s" for name in named)
    seconds = f"{summary.ttft_median_s[best]:.2f} s" + (f" ({others})" if named else "")
    return f"{text}; median time to first token {seconds}."


def _equals(ranked: pd.DataFrame) -> list[str]:
    best, others = ranked.iloc[0], ranked.iloc[1:]
    equal = others[others.reused == best.reused]
    if equal.empty:
        return []
    named = (
        f"{row.Index} ({row.stored_mib:.0f} MiB"
        f"{'' if row.several else ', one sequence only'})"
        for row in equal.itertuples()
    )
    return [f"As much is reused by {', '.join(named)}."]


def _left(rows: pd.DataFrame, best: pd.Series[float]) -> str:
    possible = rows[rows.strategy == InfiniteMemory.name]
    most = possible.reused_tokens.sum() / possible.prompt_tokens.sum()
    left = most - best.reused
    if left < 0.0005:
        return f"No exact reuse could do better: {most:.1%} with infinite memory."
    return (
        f"Exact reuse with infinite memory would reuse {most:.1%}: "
        f"{left:.1%} of all prompt tokens are left to gain."
    )
