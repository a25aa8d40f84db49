"""Comparisons: strategies beside each other, request by request and in total."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlxlab.analysis.conclusion import conclude
from mlxlab.analysis.result import Result, describe_replay
from mlxlab.analysis.tables import Forms, format_bounds, format_columns
from mlxlab.replay.bounds import BOUNDS, PLACEMENT

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["Comparison"]

_FORMS: Forms = {
    "reused": ("reused", "{:.1%}".format),
    "of_unlimited": ("of un-\nlimited", "{:.1%}".format),
    "of_optimal": ("of\noptimal", "{:.1%}".format),
    "of_position_independent": ("of any\nposition", "{:.1%}".format),
    "of_placement": ("of best\nplacement", "{:.1%}".format),
    "from_disk": ("from\ndisk", "{:.1%}".format),
    "new_session": ("new\nsession", "{:.1%}".format),
    "ttft_median_s": ("TTFT\nmedian s", "{:.2f}".format),
    "ttft_max_s": ("TTFT\nmax s", "{:.2f}".format),
    "itl_median_s": ("ITL\nmedian ms", lambda seconds: f"{1000 * seconds:.1f}"),
    "total_median_s": ("total\nmedian s", "{:.2f}".format),
    "tokens_per_s": ("answer\ntokens/s", "{:.1f}".format),
    "stored_mib": ("stored\nMiB", "{:.0f}".format),
    "evicted": ("evicted\ntokens", "{:,.0f}".format),
    "failed": ("failed", "{:.0f}".format),
}
_ESTIMATED: Forms = {
    "ttft_median_s": ("TTFT\nest. s", "{:.2f}".format),
    "ttft_max_s": ("max\nest. s", "{:.2f}".format),
}
#: Columns that make room for those of users, so that a line has 80 characters.
_APART = ("of_position_independent", "evicted")
#: The same for columns of endpoints, which hold no memory that is known.
_BESIDE_ENDPOINTS = (*_APART, "of_optimal", "new_session", "ttft_max_s")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """The result of :func:`mlxlab.compare`.

    Attributes:
        requests: one row per strategy and request. Columns: ``strategy`` (with its
            rules behind ``@`` where not all apply), ``rules``, ``capacity`` (bytes),
            ``session``, ``request``, ``prompt_tokens``, ``reused_tokens``,
            ``computed_tokens``, ``prefill_s``, ``ttft_s``, ``restore_s`` (missing
            unless measured or estimated), ``stored_bytes``, ``evicted`` (tokens),
            ``answer_tokens``, ``arrived_s`` (since the start of the replay) and
            ``total_s`` (from then to the end of the answer; both missing unless users
            asked at once). Then the bounds of the same request under the default
            rules, at the strategy's capacity: ``unlimited``, ``optimal`` and
            ``position_independent`` (tokens), and ``unlimited_s``, ``optimal_s`` and
            ``position_independent_s`` (seconds to the first token; missing without a
            cost model). For a model that resumes at checkpoints also ``placement`` and
            ``placement_s``. Where users asked at once, ``ttft_s`` includes the queue,
            ``prefill_s`` leaves out the prompt's last token, and bounds are those of
            the order in which the strategy planned the requests.
        segments: one row per request and kind of content, under the default rules.
            Columns: ``session``, ``request``, ``role`` (such as ``tools``), ``tokens``.
    """

    kind = "compare"

    segments: pd.DataFrame

    @property
    def title(self) -> str:
        replay = describe_replay(self.manifest, self.requests)
        return f"{replay}; {self._caches}"

    @property
    def _caches(self) -> str:
        """Whose requests share a cache."""
        if (users := self.manifest.get("users")) is None:
            return "each trace has its own cache"
        factor = self.manifest.get("think_times", 1)
        scaled = "" if factor == 1 else f", think times by {factor:g}"
        return f"users: {users}, one cache{scaled}"

    @property
    def _endpoints(self) -> list[str]:
        """Names of the endpoints that were asked."""
        return [endpoint["name"] for endpoint in self.manifest.get("endpoints", ())]

    def _reuse(self, name: object, rows: pd.DataFrame) -> dict[str, Any]:
        if name not in self._endpoints:
            tokens = int(self.bounds.prompt_tokens.iloc[0])
            return _shares(rows, tokens, "users" in self.manifest)
        # Of the requests whose reuse is stated. Bounds are in our count of tokens.
        stated = rows[rows.reused_tokens.notna()]
        if stated.empty:
            return {"reused": nan}
        keys = ["session", "request"]
        tokens = int(self.segments.merge(stated[keys], on=keys).tokens.sum())
        return _shares(stated, tokens, shared=True)

    def summary(self) -> pd.DataFrame:
        """Return one row per strategy; columns without data are dropped.

        Columns: ``reused`` (share of all prompt tokens); ``of_unlimited``,
        ``of_optimal``, ``of_position_independent`` and ``of_placement`` (that share,
        relative to the bound under the default rules); ``from_disk`` (share of all
        prompt tokens, where a disk was used); ``new_session`` (reused share of the
        first requests of all sessions but each cache's first; sub-agents count as
        sessions);
        ``ttft_median_s``, ``ttft_max_s``, ``itl_median_s`` (of endpoints),
        ``total_median_s``, ``tokens_per_s`` (of all answers of users, until the last
        has ended), ``prefill_s`` and ``restore_s`` (sums), ``stored_mib`` (peak),
        ``evicted`` (tokens), ``failed`` (requests that an endpoint did not answer).
        """
        groups = self.requests.groupby("strategy", sort=False)
        shared = "users" in self.manifest
        rows = {
            name: {**self._reuse(name, own), **_costs(own, shared)}
            for name, own in groups
        }
        index = pd.Index(rows, name="strategy")
        return pd.DataFrame(rows.values(), index=index).dropna(
            axis="columns", how="all"
        )

    def tables(self) -> list[pd.DataFrame]:
        summary = self.summary()
        shares = {"of_unlimited", "of_optimal"}
        # Both are missing where no request shares a prefix, and equal without eviction.
        if shares <= set(summary) and summary.of_optimal.equals(summary.of_unlimited):
            summary = summary.drop(columns="of_optimal")
        estimated = self.manifest["simulated"] and "estimated" in self.manifest
        estimated = estimated and not self._endpoints
        forms = {**_FORMS, **_ESTIMATED} if estimated else _FORMS
        if "total_median_s" in summary:
            left_out = _BESIDE_ENDPOINTS if self._endpoints else _APART
            forms = {name: own for name, own in forms.items() if name not in left_out}
        columns = format_columns(summary, forms)
        table = pd.DataFrame({"strategy": summary.index, **columns})
        return [table, format_bounds(self.bounds)]

    def lines(self) -> list[str]:
        """Return the best strategy, its gain, the possible gain, and each endpoint."""
        summary = self.summary()
        strategies = summary.drop(index=self._endpoints)
        return [
            *conclude(strategies, self.bounds, self.manifest),
            *(
                _describe_endpoint(str(name), row)
                for name, row in summary.loc[self._endpoints].iterrows()
            ),
        ]

    def plot(self) -> Picture:
        """Draw the reused share of each prompt, strategies by requests."""
        from mlxlab.analysis.plots import plot_hit_rate

        return plot_hit_rate(self)


def _reused_share(rows: pd.DataFrame) -> float:
    return _share(rows.reused_tokens, rows)


def _share(tokens: pd.Series, rows: pd.DataFrame) -> float:
    return float(tokens.sum() / rows.prompt_tokens.sum())


def _shares(rows: pd.DataFrame, tokens: int, shared: bool) -> dict[str, Any]:
    """Return what was reused, a part of a row of the summary.

    Args:
        rows: of one strategy.
        tokens: of all prompts under the rules that the bounds are for.
        shared: whether all traces have one cache.
    """
    reused = _reused_share(rows)
    names = [name for name in (*BOUNDS, PLACEMENT) if name in rows]
    most = {name: rows[name].sum(min_count=1) / tokens for name in names}
    zeros = pd.Series(0, index=rows.index)
    starts = rows.groupby("session", sort=False).head(1)
    trace = starts.session.str.rpartition(":")[0]
    starts = starts.iloc[1:] if shared else starts[trace.duplicated()]
    return {
        "reused": reused,
        **{f"of_{name}": reused / m if m else None for name, m in most.items()},
        # Results of earlier versions lack the column.
        "from_disk": _share(rows.get("disk_tokens", zeros), rows) or None,
        "new_session": _reused_share(starts) if len(starts) else None,
    }


def _costs(rows: pd.DataFrame, shared: bool) -> dict[str, Any]:
    """Return what it took, the rest of a row of the summary."""
    stored, evicted = rows.stored_bytes.max(), rows.evicted.sum(min_count=1)
    failed = int((rows.failure != "").sum()) if "failure" in rows else 0
    return {
        "ttft_median_s": rows.ttft_s.median(),
        "ttft_max_s": rows.ttft_s.max(),
        "itl_median_s": rows.itl_s.median() if "itl_s" in rows else None,
        **_totals(rows, shared),
        "prefill_s": rows.prefill_s.sum(min_count=1),
        "restore_s": rows.restore_s.sum(min_count=1),
        "stored_mib": None if pd.isna(stored) else stored / 2**20,
        "evicted": None if pd.isna(evicted) else int(evicted),
        "failed": failed or None,
    }


def _totals(rows: pd.DataFrame, shared: bool) -> dict[str, float]:
    """Return what is known where whole answers were timed."""
    if "total_s" not in rows or rows.total_s.isna().all():
        return {}
    last = float((rows.arrived_s + rows.total_s).max())
    rate = {"tokens_per_s": rows.answer_tokens.sum() / last} if shared else {}
    return {"total_median_s": rows.total_s.median(), **rate}


def _describe_endpoint(name: str, row: pd.Series[Any]) -> str:
    """Return one sentence on what an endpoint claims, and its seconds."""
    stated = pd.notna(row.reused)
    claim = f"claims {row.reused:.1%} reused" if stated else "does not state its reuse"
    if pd.isna(row.ttft_median_s):
        return f"{name} answered no request."
    return f"{name} {claim}; median time to first token {row.ttft_median_s:.2f} s."
