"""The outcome of a comparison: rows, their summary, and the manifest behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from mlxlab.errors import MlxlabError
from mlxlab.files import replaced
from mlxlab.replay.ceilings import InfiniteMemory

__all__ = ["Comparison", "contender_names"]

_CONTENDER = ["strategy", "rules"]
_FORMS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "reused": ("reused", "{:.1%}".format),
    "of_ceiling": ("of\nceiling", "{:.1%}".format),
    "new_session": ("new\nsession", "{:.1%}".format),
    "ttft_median_s": ("TTFT\nmedian s", "{:.2f}".format),
    "ttft_max_s": ("TTFT\nmax s", "{:.2f}".format),
    "stored_mib": ("stored\nMiB", "{:.0f}".format),
    "evicted": ("evicted\ntokens", "{:,}".format),
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What every strategy did with every request.

    Attributes:
        frame: a row per strategy and request; times are missing where nothing was
            computed.
        manifest: see :func:`mlxlab.replay.manifest.describe_run`.
        segments: prompt tokens by session, request and role, under the default rules.
    """

    frame: pd.DataFrame
    manifest: Mapping[str, Any]
    segments: pd.DataFrame

    @property
    def summary(self) -> pd.DataFrame:
        """A row per strategy.

        Columns: ``reused`` (token-weighted hit rate), ``of_ceiling`` (its share of
        the rate that infinite memory has under the default rules), ``new_session`` (hit
        rate of the first requests of all sessions but each trace's first; sub-agents
        count as sessions), ``ttft_median_s``, ``ttft_max_s``, ``prefill_s`` (sum),
        ``restore_s`` (sum), ``stored_mib`` (peak), ``evicted`` (tokens).
        """
        ceiling = self.frame[self.frame.strategy == InfiniteMemory.name]
        most = _hit_rate(ceiling)
        groups = self.frame.groupby(_CONTENDER, sort=False)
        rows = [
            {**dict(zip(_CONTENDER, names, strict=True)), **_summarize(rows, most)}
            for names, rows in groups
        ]
        return pd.DataFrame(rows)

    @property
    def readable(self) -> pd.DataFrame:
        """The summary as text that fits a screen; what was not measured is left out."""
        summary = self.summary
        names = contender_names(summary)
        columns = {
            heading: summary[column].map(form, na_action="ignore").fillna("")
            for column, (heading, form) in _FORMS.items()
            if summary[column].notna().any()
        }
        return pd.DataFrame({"strategy": names, **columns})

    @property
    def title(self) -> str:
        """One line on what was replayed and how."""
        traces = ", ".join(trace["name"] for trace in self.manifest["traces"])
        model = self.manifest["model"]["name"]
        how = "simulated" if self.manifest["simulated"] else self.manifest["device"]
        return f"{traces}: {self._requests} requests, model {model}, {how}"

    @property
    def notes(self) -> list[str]:
        """What a reader should know: skipped lines, and what was rendered otherwise."""
        rendered = self.manifest["notes"].items()
        return [
            f"trace {trace['name']}: {trace['skipped_lines']} partial last line skipped"
            for trace in self.manifest["traces"]
            if trace["skipped_lines"]
        ] + [f"{note} ({times} times)" for note, times in rendered]

    @property
    def _requests(self) -> int:
        return int(self.frame.groupby(["session", "request"]).ngroups)

    def to_json(self, path: str | Path) -> None:
        """Write ``{"manifest": ..., "rows": [...]}``, whole or not at all.

        Raises:
            MlxlabError: the file cannot be written.
        """
        rows = json.loads(self.frame.to_json(orient="records", double_precision=6))
        text = json.dumps({"manifest": self.manifest, "rows": rows}, indent=1)
        try:
            with replaced(Path(path)) as file:
                file.write(text.encode() + b"\n")
        except OSError as error:
            raise MlxlabError(
                f"{path}: {error.strerror}; give a file to write"
            ) from None

    def __repr__(self) -> str:
        strategies = self.frame.groupby(_CONTENDER).ngroups
        return f"Comparison({strategies} strategies, {self._requests} requests)"

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>Note: {escape(note)}</p>" for note in self.notes)
        return self.readable.to_html(index=False) + notes


def contender_names(frame: pd.DataFrame) -> pd.Series[str]:
    """A strategy's name for every row, with its rules where not all are in force."""
    rules = frame.rules.where(frame.rules != "all")
    return frame.strategy + ("@" + rules).fillna("")


def _hit_rate(rows: pd.DataFrame) -> float:
    """Reused share of all prompt tokens."""
    return float(rows.reused_tokens.sum() / rows.prompt_tokens.sum())


def _summarize(rows: pd.DataFrame, most: float) -> dict[str, Any]:
    starts = rows.groupby("session", sort=False).head(1)
    trace = starts.session.str.rpartition(":")[0]
    starts = starts[trace.duplicated()]
    return {
        "reused": _hit_rate(rows),
        "of_ceiling": _hit_rate(rows) / most if most else None,
        "new_session": _hit_rate(starts) if len(starts) else None,
        "ttft_median_s": rows.ttft_s.median(),
        "ttft_max_s": rows.ttft_s.max(),
        "prefill_s": rows.prefill_s.sum(min_count=1),
        "restore_s": rows.restore_s.sum(min_count=1),
        "stored_mib": rows.stored_bytes.max() / 2**20,
        "evicted": int(rows.evicted.sum()),
    }
