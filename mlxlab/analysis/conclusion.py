"""The conclusion of a comparison in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mlxlab.strategies.none import NoReuse
from mlxlab.traces.completeness import Completeness

__all__ = ["conclude", "find_lack"]


def conclude(
    summary: pd.DataFrame, bounds: pd.DataFrame, manifest: Mapping[str, Any]
) -> list[str]:
    """Return the best strategy, its gain, and the possible gain, one line each.

    The most reused tokens win. Among equals a strategy that holds several sequences
    wins, then the one that stores least.

    Args:
        summary: one row per strategy, see :meth:`Comparison.summary`.
        bounds: see :func:`mlxlab.replay.bounds.tabulate_bounds`.
        manifest: of the comparison.
    """
    if lack := find_lack(manifest):
        return [lack]
    most = [spec["max_sequences"] for spec in manifest["strategies"]]
    several = [n is None or n > 1 for n in most]
    ranked = summary.assign(several=several).sort_values(
        ["reused", "several", "stored_mib"], ascending=[False, False, True]
    )
    best = ranked.iloc[0]
    return [
        f"Best: {best.name} reuses {best.reused:.1%} of all prompt tokens"
        + _against(summary, str(best.name)),
        *_equals(ranked),
        _left(bounds, best),
    ]


def find_lack(manifest: Mapping[str, Any]) -> str:
    """Return why nothing can be concluded, empty if something can."""
    found = [trace.get("completeness") for trace in manifest["traces"]]
    measured = [Completeness.model_validate(own) for own in found if own]
    if any(own.is_mostly_absent for own in measured):
        return "What reuse could gain is not known: most of the prompts is absent."
    return ""


def _against(summary: pd.DataFrame, best: str) -> str:
    """Compare with the first strategy and with no reuse, unless they are the best."""
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


def _left(bounds: pd.DataFrame, best: pd.Series[float]) -> str:
    unlimited = bounds[bounds.bound == "unlimited"].iloc[0]
    most = unlimited.reused_tokens / unlimited.prompt_tokens
    left = most - best.reused
    if left < 0.0005:
        return f"No exact reuse could do better: {most:.1%} with unlimited memory."
    return (
        f"Exact reuse with unlimited memory would reuse {most:.1%}: "
        f"{left:.1%} of all prompt tokens are left to gain."
    )
