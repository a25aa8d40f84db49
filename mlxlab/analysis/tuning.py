"""Tunings: the recommended strategy and parameters, and the reasons."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from mlxlab.analysis.conclusion import find_lack
from mlxlab.analysis.eviction.result import LEAST_GAIN
from mlxlab.analysis.result import Result, describe_traces
from mlxlab.analysis.tables import Forms, format_bounds, format_columns
from mlxlab.rendering.rules import label_rules
from mlxlab.replay.specs import StrategySpec
from mlxlab.sizes import format_size
from mlxlab.strategies import ParameterValue
from mlxlab.strategies.eviction import DEFAULT as LRU

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["Tuning", "rank"]

_FORMS: Forms = {
    "strategy": ("strategy", str),
    "reused": ("reused", "{:.1%}".format),
    "cost": ("tokens to\ncompute", "{:,.0f}".format),
    "more": ("more than\nbest", "{:+.1%}".format),
    "ttft_mean_s": ("TTFT est.\nmean s", "{:.2f}".format),
    "ttft_median_s": ("TTFT est.\nmedian s", "{:.2f}".format),
    "stored_mib": ("stored\nMiB", "{:.0f}".format),
}


def rank(trials: pd.DataFrame, error: float) -> pd.DataFrame:
    """Sort trials, the best first.

    Trials that cost at most ``error`` more than the cheapest are ties. Ties that hold
    several sequences come first, then those without a disk, then those that hold the
    least memory.

    Args:
        trials: with ``cost``, ``several``, ``stored_bytes``, and ``disk_bytes`` if a
            disk was tried.
        error: relative error of costs.
    """
    tied = _tied(trials, error)
    order = ["several", "disk_bytes", "stored_bytes", "cost"]
    order = [name for name in order if name in trials]
    ascending = [name != "several" for name in order]
    ties = trials[tied].sort_values(order, ascending=ascending)
    others = trials[~tied].sort_values(["cost", "stored_bytes"])
    return pd.concat([ties, others], ignore_index=True)


def _tied(trials: pd.DataFrame, error: float) -> pd.Series[bool]:
    tied: pd.Series[bool] = trials.cost <= trials.cost.min() * (1 + error)
    return tied


@dataclass(frozen=True, eq=False, repr=False)
class Tuning(Result):
    """The result of :func:`mlxlab.tune`.

    Attributes:
        requests: totals over all requests, one row per trial, in the order of
            :func:`rank`. Columns: ``strategy`` (with parameters), ``name`` (without),
            ``several`` (holds several sequences at once), ``cost`` (the minimised
            quantity: the mean seconds to the first token, or without a cost model the
            mean tokens to compute), ``prompt_tokens``, ``reused_tokens``,
            ``stored_bytes`` (peak); with a disk to try ``disk_tokens`` (of the reused
            ones) and ``disk_bytes`` (most on disk); with a cost model ``ttft_mean_s``,
            ``ttft_median_s``, ``ttft_p90_s``.
        replayed: one row per request under the recommended strategy. Columns:
            ``session``, ``request``, ``prompt_tokens``, ``reused_tokens``.
    """

    kind = "tune"

    replayed: pd.DataFrame

    @property
    def memory(self) -> int:
        """The budget in bytes."""
        return int(self.manifest["memory"])

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.manifest["model"]["name"])

    @property
    def error(self) -> float:
        """Relative error within which costs are ties.

        The cost model's median error; 0 for computed tokens, which are exact.
        """
        return float(self.manifest["error"])

    @property
    def rules(self) -> str:
        """The rules as they are written."""
        (spec,) = self.manifest["strategies"]
        return label_rules(tuple(spec["rules"]))

    @property
    def unlimited(self) -> int:
        """Tokens that exact reuse would reuse with unlimited memory."""
        return self._bound("unlimited")

    @property
    def optimal(self) -> int:
        """Tokens that exact reuse would reuse with this memory and optimal eviction."""
        return self._bound("optimal")

    def _bound(self, name: str) -> int:
        return int(self.bounds.reused_tokens[self.bounds.bound == name].iloc[0])

    @property
    def title(self) -> str:
        users = self.manifest["users"]
        at_once = f"{users} at a time" if users > 1 else "one after the other"
        return (
            f"{describe_traces(self.manifest)}: {len(self.requests)} trials, model "
            f"{self.model}, {format_size(self.memory)}, simulated; "
            f"all traces share one cache, {at_once}"
        )

    def summary(self) -> pd.DataFrame:
        """Return the best trial of each strategy, the best first.

        Columns: those of ``requests``, and ``reused`` (share of all prompt tokens) and
        ``more`` (cost above the best trial's, relative).
        """
        best = self.requests.drop_duplicates("name")
        least = self.best.cost
        return best.assign(
            reused=best.reused_tokens / best.prompt_tokens,
            more=best.cost / least - 1 if least else 0.0,
        ).reset_index(drop=True)

    def tables(self) -> list[pd.DataFrame]:
        summary = self.summary()
        shown = summary.assign(stored_mib=summary.stored_bytes / 2**20)
        if "ttft_mean_s" in shown:
            shown = shown.drop(columns="cost")
        return [pd.DataFrame(format_columns(shown, _FORMS)), format_bounds(self.bounds)]

    def plot(self) -> Picture:
        """Draw the cost of every trial, one row per strategy."""
        from mlxlab.analysis.plots import plot_trials

        return plot_trials(self)

    @property
    def best(self) -> pd.Series:
        """The recommended trial."""
        return self.requests.iloc[0]

    @property
    def tied(self) -> pd.DataFrame:
        """The best trial of each other strategy that ties with the recommended one."""
        ties = self.requests[_tied(self.requests, self.error)]
        others: pd.DataFrame = ties[ties.name != self.best["name"]]
        return others.drop_duplicates("name")

    @property
    def runner_up(self) -> pd.Series:
        """The best trial of another strategy."""
        others = self.requests[self.requests.name != self.best["name"]]
        return others.iloc[0] if len(others) else self.best

    @property
    def servable(self) -> bool:
        """Whether the model can be served with the recommendation.

        It cannot if another layout was simulated that needs other settings.
        """
        return bool(self.manifest.get("servable", True))

    @property
    def serve_line(self) -> str:
        """The line that serves the recommendation in a notebook."""
        rules = "" if self.rules == "all" else f" --rules {self.rules}"
        return f"%serve --model {self.model} --strategy {self.best.strategy}{rules}"

    @property
    def alias(self) -> str:
        """The recommendation as an entry of model_aliases.json."""
        entry = {"model": self.model, "strategy": self.best.strategy}
        if self.rules != "all":
            entry["rules"] = self.rules
        return json.dumps({"aliases": {"default": entry}})

    def reasons(self) -> list[str]:
        """Return the reasons of the recommendation, one sentence each."""
        if lack := find_lack(self.manifest):
            return [lack]
        best, tokens = self.best, self.best.prompt_tokens
        budget = format_size(self.memory)
        shares = [
            n / tokens for n in (best.reused_tokens, self.unlimited, self.optimal)
        ]
        reused, unlimited, optimal = map("{:.1%}".format, shares)
        reuse = f"It reuses {reused} of all prompt tokens; unlimited memory would reuse"
        said = [f"{reuse} {unlimited}, and optimal eviction in {budget} {optimal}."]
        for name, rows in self.requests.groupby("name", sort=False):
            if name != best["name"]:
                said.append(self._compare(str(name), rows.iloc[0]))
        said += self._parameters()
        said += self._eviction()
        said += self._disk()
        peak = best.stored_bytes / self.memory
        if peak < 0.5:
            held = f"{best.stored_bytes / 2**30:.2f} GiB"
            said.append(f"It never held more than {held}; a budget of that would do.")
        elif self.optimal < self.unlimited * 0.98:
            lost = (self.unlimited - self.optimal) / tokens
            said.append(
                f"Memory is short: at least {lost:.1%} of all tokens need more than "
                f"{budget} to stay until they are used again."
            )
        return said

    def _compare(self, name: str, other: pd.Series) -> str:
        more = other.cost / self.best.cost - 1 if self.best.cost else 0.0
        share = other.reused_tokens / other.prompt_tokens
        reuse = f"{name} at its best ({other.strategy}) reuses {share:.1%}"
        return f"{reuse}: {_more(more)} {self._measure}."

    def _disk(self) -> list[str]:
        """Compare the best trials with and without a disk."""
        size = int(self.manifest.get("disk", 0))
        if not size:
            return []
        on_disk = self.requests.disk_bytes > 0
        with_, without = self.requests[on_disk].cost, self.requests[~on_disk].cost
        less = 1 - with_.min() / without.min() if without.min() else 0.0
        named = f"A disk of {format_size(size)}"
        if less <= self.error or less < 0.0005:
            return [f"{named} does not pay here: without it no more {self._measure}."]
        return [f"{named} pays: it takes {less:.1%} off the {self._measure}."]

    def _eviction(self) -> list[str]:
        """Say whether another policy pays, all else being as recommended."""
        own = self.requests[self.requests.name == self.best["name"]]
        best = dict(StrategySpec.parse(self.best.strategy).parameters)
        shares: dict[str, float] = {}
        for _, row in own.iterrows():
            parameters = dict(StrategySpec.parse(row.strategy).parameters)
            policy = str(parameters.get("evict"))
            if parameters == {**best, "evict": policy}:
                shares[policy] = row.reused_tokens / row.prompt_tokens
        if len(shares) < 2 or LRU not in shares:
            return []
        lru = shares.pop(LRU)
        # No -0.0.
        points = {n: round(100 * (share - lru), 1) + 0.0 for n, share in shares.items()}
        most = max(points, key=points.__getitem__)
        if points[most] > LEAST_GAIN:
            gain = f"{points[most]:.1f} points more of all prompt tokens"
            return [f"evict={most} pays: it reuses {gain} than {LRU}."]
        others = ", ".join(f"{name}: {own:+.1f} points" for name, own in points.items())
        return [f"evict={LRU} is as good ({others})."]

    def _parameters(self) -> list[str]:
        """Compare the values of each parameter of the recommended strategy."""
        said = []
        own = self.requests[self.requests.name == self.best["name"]]
        tried = [dict(StrategySpec.parse(text).parameters) for text in own.strategy]
        for key, chosen in tried[0].items():
            if key in ("disk", "evict"):
                continue  # see _disk and _eviction
            # Some parameters mean something beside certain values of others only.
            least: dict[ParameterValue, float] = {}
            for parameters, cost in zip(tried, own.cost, strict=True):
                if key in parameters:
                    value = parameters[key]
                    least[value] = min(cost, least.get(value, cost))
            if len(least) > 1:
                best = least[chosen]
                more = max(least.values()) / best - 1 if best else 0.0
                values = ", ".join(map(str, sorted(least)))
                cost = f"up to {_more(more)} {self._measure}"
                said.append(f"{key}={chosen}, of {values} tried; others cost {cost}.")
        return said

    @property
    def _measure(self) -> str:
        timed = "ttft_mean_s" in self.requests
        return "time to the first token" if timed else "tokens to compute"

    def lines(self) -> list[str]:
        """Return the recommendation, its cost, and the reasons."""
        return [
            f"Recommended: {self.best.strategy}",
            *(f"  {line}" for line in self._settings()),
            *self._outlook(),
            "Why:",
            *(f"- {sentence}" for sentence in self.reasons()),
        ]

    def _settings(self) -> list[str]:
        """Return the lines that serve the recommendation."""
        if self.servable:
            return [self.serve_line, self.alias]
        return [f"for the simulated layout; {self.model} has another and refuses it"]

    def _outlook(self) -> list[str]:
        """Return the expected cost, the ties and the runner-up."""
        best, other = self.best, self.runner_up
        expected = f"{best.cost:,.0f} tokens to compute for each request in the mean"
        if "ttft_mean_s" in self.requests:
            expected = (
                f"time to first token {best.ttft_mean_s:.2f} s in the mean, "
                f"{best.ttft_median_s:.2f} s in the median, {best.ttft_p90_s:.2f} s in "
                "one of ten or more (estimated)"
            )
        more = other.cost / best.cost - 1 if best.cost else 0.0
        return [
            f"Expected: {expected}",
            *self._ties(),
            f"Runner-up: {other.strategy}, {_more(more)} {self._measure}",
        ]

    def _ties(self) -> list[str]:
        if self.tied.empty:
            return []
        within = "token for token"
        if "ttft_mean_s" in self.requests:
            within = f"within the estimate's error of {self.error:.1%}"
        named = [
            f"{row.strategy} ({row.stored_bytes / 2**20:.0f} MiB"
            f"{'' if row.several else ', one sequence only'})"
            for _, row in self.tied.iterrows()
        ]
        kind = "holds several sequences in" if self.best.several else "holds"
        held = f"{self.best.stored_bytes / 2**20:.0f} MiB"
        return [f"Tied {within}: {', '.join(named)}; the recommended one {kind} {held}"]

    def _html_lines(self) -> str:
        code = "<pre>{}</pre>".format(escape("\n".join(self._settings())))
        outlook = "<br>".join(map(escape, self._outlook()))
        items = "".join(f"<li>{escape(line)}</li>" for line in self.reasons())
        return f"{code}<p>{outlook}</p><ul>{items}</ul>"


def _more(share: float) -> str:
    return "no more" if abs(share) < 0.0005 else f"{share:+.1%}"
