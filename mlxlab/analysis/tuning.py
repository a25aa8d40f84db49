"""What a search for strategy and parameters found, and what it says in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from mlxlab.analysis.tables import name_traces
from mlxlab.replay.specs import StrategySpec
from mlxlab.sizes import format_size

__all__ = ["Tuning", "rank"]


def rank(trials: pd.DataFrame, error: float) -> pd.DataFrame:
    """Sort trials, the best first.

    Those that cost no more than ``error`` above the least are ties. Of ties come first
    those that hold several sequences, then those that hold the least memory.

    Args:
        trials: with ``cost``, ``several`` and ``stored_bytes``.
        error: share by which costs are off.
    """
    tied = _tied(trials, error)
    order = ["several", "stored_bytes", "cost"]
    ties = trials[tied].sort_values(order, ascending=[False, True, True])
    others = trials[~tied].sort_values(["cost", "stored_bytes"])
    return pd.concat([ties, others], ignore_index=True)


def _tied(trials: pd.DataFrame, error: float) -> pd.Series[bool]:
    tied: pd.Series[bool] = trials.cost <= trials.cost.min() * (1 + error)
    return tied


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a search found.

    Attributes:
        trials: a row per strategy and parameters that was tried, in the order of
            :func:`rank`: ``strategy``, ``name`` (without parameters), ``several``
            (whether it holds several sequences at once), ``prompt_tokens``,
            ``reused_tokens``, ``stored_bytes`` (peak), and with a calibration
            ``ttft_mean_s``, ``ttft_median_s``, ``ttft_p90_s``; ``cost`` is what was
            minimised, the mean time to the first token, else of computed tokens.
        error: share within which costs are ties: the calibration's median error, 0
            for computed tokens, which are exact.
        users: traces that were replayed at the same time.
        infinite: tokens that exact reuse could have had with infinite memory.
        finite: with this memory and all the future known.
        memory: the budget in bytes.
        model: its name.
        rules: as they are written.
        manifest: as in :func:`mlxlab.compare`.
    """

    trials: pd.DataFrame
    error: float
    users: int
    infinite: int
    finite: int
    memory: int
    model: str
    rules: str
    manifest: Mapping[str, Any]

    @property
    def best(self) -> pd.Series:
        """The recommended one's row."""
        return self.trials.iloc[0]

    @property
    def tied(self) -> pd.DataFrame:
        """Of each other strategy the best that costs the same within the error."""
        ties = self.trials[_tied(self.trials, self.error)]
        others: pd.DataFrame = ties[ties.name != self.best["name"]]
        return others.drop_duplicates("name")

    @property
    def title(self) -> str:
        """One line on what was replayed, and into which cache."""
        at_once = f"{self.users} at a time" if self.users > 1 else "one after the other"
        return (
            f"{name_traces(self.manifest)}: model {self.model}, simulated; "
            f"all traces share one cache, {at_once}"
        )

    @property
    def runner_up(self) -> pd.Series:
        """The best of another strategy."""
        others = self.trials[self.trials.name != self.best["name"]]
        return others.iloc[0] if len(others) else self.best

    @property
    def serve_line(self) -> str:
        """Starts what is recommended, in a notebook."""
        rules = "" if self.rules == "all" else f" --rules {self.rules}"
        return f"%serve --model {self.model} --strategy {self.best.strategy}{rules}"

    @property
    def alias(self) -> str:
        """The same as an entry of model_aliases.json."""
        entry = {"model": self.model, "strategy": self.best.strategy}
        if self.rules != "all":
            entry["rules"] = self.rules
        return json.dumps({"aliases": {"default": entry}})

    def explain(self) -> list[str]:
        """What drove the recommendation, a sentence each."""
        best, tokens = self.best, self.best.prompt_tokens
        budget = format_size(self.memory)
        shares = [n / tokens for n in (best.reused_tokens, self.infinite, self.finite)]
        reused, infinite, finite = map("{:.1%}".format, shares)
        reuse = f"It reuses {reused} of all prompt tokens; infinite memory would reuse"
        said = [f"{reuse} {infinite}, and {budget} with all the future known {finite}."]
        for name, rows in self.trials.groupby("name", sort=False):
            if name != best["name"]:
                said.append(self._compare(str(name), rows.iloc[0]))
        said += self._parameters()
        peak = best.stored_bytes / self.memory
        if peak < 0.5:
            held = f"{best.stored_bytes / 2**30:.2f} GiB"
            said.append(
                f"It never held more than {held}, so a budget of that would do."
            )
        elif self.finite < self.infinite * 0.98:
            lost = (self.infinite - self.finite) / tokens
            said.append(
                f"Memory is short: {lost:.1%} of all tokens or more need more than "
                f"{budget} to be kept until they come again."
            )
        return said

    def _compare(self, name: str, other: pd.Series) -> str:
        more = other.cost / self.best.cost - 1 if self.best.cost else 0.0
        share = other.reused_tokens / other.prompt_tokens
        what = f"{name} at its best ({other.strategy}) reuses {share:.1%}"
        return f"{what}: {_more(more)} {self._measure}."

    def _parameters(self) -> list[str]:
        """What the winner's parameters made out, the others at their best."""
        said = []
        own = self.trials[self.trials.name == self.best["name"]]
        specs = [StrategySpec.parse(text) for text in own.strategy]
        parsed = pd.DataFrame([dict(s.parameters) for s in specs], index=own.index)
        for key in parsed:
            costs = own.cost.groupby(parsed[key]).min()
            chosen = parsed[key].iloc[0]
            if len(costs) > 1:
                more = costs.max() / costs[chosen] - 1 if costs[chosen] else 0.0
                tried = ", ".join(map(str, costs.index))
                cost = f"up to {_more(more)} {self._measure}"
                said.append(f"{key}={chosen}, of {tried} tried; others cost {cost}.")
        return said

    @property
    def _measure(self) -> str:
        timed = "ttft_mean_s" in self.trials
        return "time to the first token" if timed else "tokens to compute"

    def lines(self) -> list[str]:
        """The recommendation, to be printed."""
        return [
            self.title,
            f"Recommended: {self.best.strategy}",
            f"  {self.serve_line}",
            f"  {self.alias}",
            *self._outlook(),
            "Why:",
            *(f"- {sentence}" for sentence in self.explain()),
        ]

    def _outlook(self) -> list[str]:
        """What to expect, what is as good, and what comes next."""
        best, other = self.best, self.runner_up
        expected = f"{best.cost:,.0f} tokens to compute for each request in the mean"
        if "ttft_mean_s" in self.trials:
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
        if "ttft_mean_s" in self.trials:
            within = f"within the estimate's error of {self.error:.1%}"
        named = [
            f"{row.strategy} ({row.stored_bytes / 2**20:.0f} MiB"
            f"{'' if row.several else ', one sequence only'})"
            for _, row in self.tied.iterrows()
        ]
        kind = "holds several sequences in" if self.best.several else "holds"
        held = f"{self.best.stored_bytes / 2**20:.0f} MiB"
        return [f"Tied {within}: {', '.join(named)}; the recommended one {kind} {held}"]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        code = f"<pre>{escape(self.serve_line)}\n{escape(self.alias)}</pre>"
        outlook = "<br>".join(map(escape, self._outlook()))
        items = "".join(f"<li>{escape(line)}</li>" for line in self.explain())
        return f"<p>{escape(self.title)}</p>{code}<p>{outlook}</p><ul>{items}</ul>"


def _more(share: float) -> str:
    return "no more" if abs(share) < 0.0005 else f"{share:+.1%}"
