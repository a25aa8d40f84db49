"""What reuse did to answers: rows, what they add up to, and how that is read.

Knows no model and runs nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Self

import pandas as pd

from mlxlab.analysis.tables import (
    Forms,
    format_columns,
    list_notes,
    read_content,
    title_of,
    write_content,
)
from mlxlab.errors import MlxlabError

__all__ = [
    "REQUEST_TYPES",
    "Fidelity",
    "format_findings",
    "format_nats",
    "format_share",
]


def format_nats(value: float) -> str:
    """Two digits, in six characters: ``0.0031``, ``2.1e-5``, ``9e-13``."""
    if value == 0 or value >= 1e-3:
        return f"{value:.2g}"
    digits = 1 if value >= 1e-9 else 0
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def format_share(value: float) -> str:
    """One decimal, but for all: ``99.8%``, ``100%``."""
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


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Answers over reused keys and values beside those of a full prefill.

    Attributes:
        requests: a row per evaluated request and spec. ``trace``, ``edit``,
            ``session``, ``request``, ``spec`` (with its rules where not all are
            in force), ``kind`` (reference, floor, quantized, exact or approximate);
            ``prompt_tokens``, ``reused_tokens``, ``exact_tokens`` (what infinite
            memory would reuse), ``lost_tokens`` (what it would reuse beyond that
            without the edit, if the prompt has room for it), ``recovered_tokens`` (how
            many of those were reused), ``shift`` (the furthest that keys were moved;
            missing where none were); ``first_kl`` (nats, of the answer's first token),
            ``greedy_prefix`` and ``greedy_tokens`` (tokens of the reference's greedy
            answer, and how many of them lead this one), ``answer`` (greedy, as text),
            ``tool_name_agrees`` and ``tool_arguments_agree`` (missing where the
            reference calls no tool), ``task_right`` (missing unless the trace holds
            tasks), ``ttft_s`` (missing for quantized weights, which are rounded but
            compute as before).
        positions: a row per scored token of a recorded answer. ``row`` (in the index
            of ``requests``), ``position`` (in the answer), ``kld``, ``same_top``,
            ``delta_p`` and ``surprisal``, see
            :class:`mlxlab.analysis.fidelity.divergence.Divergence`.
    """

    requests: pd.DataFrame
    positions: pd.DataFrame

    @property
    def manifest(self) -> dict[str, Any]:
        """What decided the numbers, see :func:`mlxlab.replay.manifest.describe_run`."""
        manifest: dict[str, Any] = self.requests.attrs["manifest"]
        return manifest

    @property
    def title(self) -> str:
        """One line on what was evaluated, and how much exact reuse loses there."""
        evaluated = self.requests[self.requests.kind == "reference"]
        lost = evaluated.lost_tokens.sum() / evaluated.prompt_tokens.sum()
        edits = ", ".join(evaluated.edit.unique())
        return (
            f"{title_of(self.requests)}; {len(evaluated)} evaluated, edits: {edits}; "
            f"{lost:.1%} of their tokens lost to exact reuse"
        )

    def summary(self, by: Sequence[str] = ("variant",)) -> pd.DataFrame:
        """One row per group, in run order; columns without any data are dropped.

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

    @classmethod
    def read_json(cls, path: str | Path) -> Self:
        """Read what :meth:`write_json` wrote.

        Raises:
            MlxlabError: the file cannot be read, or holds something else.
        """
        content = read_content(path)
        try:
            requests = pd.DataFrame(content["requests"]).astype(REQUEST_TYPES)
            requests.attrs["manifest"] = content["manifest"]
            return cls(requests, pd.DataFrame(**content["positions"]))
        except (KeyError, TypeError, ValueError):
            raise MlxlabError(
                f"{path}: holds no findings; give a file that mlxlab fidelity wrote"
            ) from None

    def write_json(self, path: str | Path) -> None:
        """Write manifest, summary, requests and positions, whole or not at all.

        Args:
            path: packed if it ends in ``.gz``. Measured numbers get 5 digits.

        Raises:
            MlxlabError: the file cannot be written.
        """
        content = {
            "manifest": self.manifest,
            "summary": _plain(self.summary().reset_index(), "records"),
            "requests": _plain(self.requests, "records"),
            "positions": _plain(self.positions, "split"),
        }
        write_content(content, path)

    def __repr__(self) -> str:
        evaluated = (self.requests.kind == "reference").sum()
        specs = self.requests.variant.nunique()
        return f"Fidelity({evaluated} requests, {specs} specs)"

    def _repr_html_(self) -> str:
        table = format_findings(self.summary())
        headings = [heading.replace("-\n", "") for heading in table.columns]
        lines = [self.title, *list_notes(self.requests)]
        notes = "".join(f"<p>{escape(line)}</p>" for line in lines)
        return notes + str(table.set_axis(headings, axis=1).to_html(index=False))


def format_findings(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary by spec as text under short headings, 100 columns at most."""
    names = map(_folded, summary.index)
    return pd.DataFrame({"variant": list(names), **format_columns(summary, _FORMS)})


def _folded(name: str) -> str:
    """Its parameters on lines of their own if it is long."""
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


def _plain(frame: pd.DataFrame, orient: Any) -> Any:
    # Significant digits: divergences are small numbers, which decimals round away.
    index = False if orient == "split" else None
    floats = frame.select_dtypes("float").columns
    rounded = frame.assign(**{c: frame[c].map(_rounded) for c in floats})
    return json.loads(rounded.to_json(orient=orient, index=index, double_precision=15))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
