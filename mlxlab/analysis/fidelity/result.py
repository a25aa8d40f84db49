"""Fidelity: how close answers over reused keys and values come to a full prefill."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from mlxlab.analysis.result import Result, describe_replay
from mlxlab.analysis.tables import Forms, format_bounds, format_columns

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["REQUEST_TYPES", "Fidelity", "format_nats", "format_share"]


def format_nats(value: float) -> str:
    """Write two digits in at most six characters: ``0.0031``, ``2.1e-5``, ``9e-13``."""
    if value == 0 or value >= 1e-3:
        return f"{value:.2g}"
    digits = 1 if value >= 1e-9 else 0
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def format_share(value: float) -> str:
    """Write one decimal, except for 100%: ``99.8%``, ``100%``."""
    return f"{value:.1%}".replace("100.0%", "100%")


_FORMS: Forms = {
    "reused": ("re-\nused", format_share),
    "recovered": ("of\nlost", format_share),
    "kld_median": ("KLD\nmedian", format_nats),
    "kld_mean": ("KLD\nmean", format_nats),
    "kld_999": ("KLD\n99.9%", format_nats),
    "same_top": ("same\ntop", format_share),
    "rms_delta_p": ("RMS\nΔp", format_share),
    "first_kl": ("KL\nfirst", format_nats),
    "greedy_prefix": ("same\nstart", "{:.0%}".format),
    "tool_names": ("tool\nname", "{:.0%}".format),
    "tool_arguments": ("tool\nargs", "{:.0%}".format),
    "task_right": ("task", "{:.0%}".format),
    "ttft_median_s": ("TTFT\ns", "{:.2f}".format),
}

#: Types of request columns that may be missing.
REQUEST_TYPES = {
    "shift": "Int64",
    "tool_name_agrees": "boolean",
    "tool_arguments_agree": "boolean",
    "task_right": "boolean",
}

#: Characters of a name that leave room for all columns.
_SHORT = 20


@dataclass(frozen=True, eq=False, repr=False)
class Fidelity(Result):
    """The result of :func:`mlxlab.fidelity`.

    Attributes:
        requests: one row per evaluated request and variant. Columns: ``trace``,
            ``edit``, ``session``, ``request``, ``variant`` (a strategy, with its rules
            behind ``@`` where not all apply, or a baseline), ``kind`` (reference,
            floor, quantized, exact or approximate), ``prompt_tokens``,
            ``reused_tokens``, ``exact_tokens`` (reusable with unlimited memory),
            ``lost_tokens`` (tokens that unlimited memory would reuse more without the
            edit),
            ``recovered_tokens`` (lost tokens that were reused), ``shift`` (the furthest
            distance that keys were moved; missing where none were); ``first_kl`` (nats,
            of the answer's first token), ``greedy_tokens`` (of the reference's greedy
            answer), ``greedy_prefix`` (how many of them this answer begins with),
            ``answer`` (greedy, as text), ``tool_name_agrees`` and
            ``tool_arguments_agree`` (missing where the reference calls no tool),
            ``task_right`` (missing unless the trace holds tasks), ``ttft_s`` (missing
            for quantized weights, which are rounded but compute as before).
        bounds: over the evaluated requests; ``optimal`` is left out.
        positions: one row per scored token of a recorded answer. Columns: ``row`` (in
            the index of ``requests``), ``position`` (in the answer), ``kld``,
            ``same_top``, ``delta_p`` and ``surprisal``, see
            :class:`mlxlab.analysis.fidelity.divergence.Divergence`.
    """

    kind = "fidelity"

    positions: pd.DataFrame

    @property
    def title(self) -> str:
        evaluated = self.requests[self.requests.kind == "reference"]
        lost = evaluated.lost_tokens.sum() / evaluated.prompt_tokens.sum()
        edits = ", ".join(evaluated.edit.unique())
        return (
            f"{describe_replay(self.manifest, self.requests)}\n"
            f"{len(evaluated)} evaluated, edits: {edits}; "
            f"{lost:.1%} of their tokens lost to exact reuse"
        )

    def summary(self, by: Sequence[str] = ("variant",)) -> pd.DataFrame:
        """Return one row per group, in run order; columns without data are dropped.

        Columns: ``requests``; ``reused`` and ``lost`` (shares of all prompt tokens),
        ``recovered`` (share of the lost tokens); over positions ``kld_median``,
        ``kld_mean``, ``kld_999`` (99.9 % quantile), ``same_top`` (share),
        ``rms_delta_p``; over requests ``first_kl`` (median), ``greedy_prefix`` (median
        share), ``tool_names``, ``tool_arguments``, ``task_right`` (shares),
        ``ttft_median_s``.

        Args:
            by: columns of ``requests`` to group by.
        """
        by = list(by)
        order = {
            column: pd.CategoricalDtype(list(self.requests[column].unique()), True)
            for column in by
        }
        requests = self.requests.astype(order)
        positions = self.positions.join(requests[by], on="row")
        table = pd.concat(
            [_add_up_requests(requests, by), _add_up_positions(positions, by)], axis=1
        )
        columns = ["requests", "lost", *_FORMS]
        return table[columns].dropna(axis="columns", how="all")

    def tables(self) -> list[pd.DataFrame]:
        return [_format(self.summary()), format_bounds(self.bounds)]

    def edit_tables(self) -> dict[str, pd.DataFrame]:
        """Return one table per edit, in run order."""
        groups = self.summary(("edit", "variant")).groupby("edit", observed=True)
        return {str(edit): _format(own.droplevel("edit")) for edit, own in groups}

    def plot(self) -> Picture:
        """Draw recovered tokens against divergence, one point per strategy."""
        from mlxlab.analysis.plots import plot_pareto

        return plot_pareto(self)


def _format(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a summary by variant as text, at most 100 columns wide."""
    names = list(map(_folded, summary.index))
    return pd.DataFrame({"variant": names, **format_columns(summary, _FORMS)})


def _folded(name: str) -> str:
    """Break a long name before each parameter."""
    return name if len(name) <= _SHORT else re.sub("([:,])", r"\1\n ", name)


def _add_up_requests(requests: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    share = requests.greedy_prefix / requests.greedy_tokens
    groups = requests.assign(share=share).groupby(by, observed=True)
    tokens = groups[["prompt_tokens", "reused_tokens", "lost_tokens"]].sum()
    return pd.DataFrame(
        {
            "requests": groups.size(),
            "reused": tokens.reused_tokens / tokens.prompt_tokens,
            "lost": tokens.lost_tokens / tokens.prompt_tokens,
            "recovered": groups.recovered_tokens.sum() / tokens.lost_tokens,
            "first_kl": groups.first_kl.median(),
            "greedy_prefix": groups.share.median(),
            "tool_names": groups.tool_name_agrees.mean(),
            "tool_arguments": groups.tool_arguments_agree.mean(),
            "task_right": groups.task_right.mean(),
            "ttft_median_s": groups.ttft_s.median(),
        }
    )


def _add_up_positions(positions: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    groups = positions.assign(square=positions.delta_p**2).groupby(by, observed=True)
    return pd.DataFrame(
        {
            "kld_median": groups.kld.median(),
            "kld_mean": groups.kld.mean(),
            "kld_999": groups.kld.quantile(0.999),
            "same_top": groups.same_top.mean(),
            "rms_delta_p": groups.square.mean() ** 0.5,
        }
    )
