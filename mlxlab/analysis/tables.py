"""From the rows of a comparison to what a reader looks at, and to a file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from mlxlab.errors import MlxlabError
from mlxlab.files import replaced
from mlxlab.replay.bounds import CEILINGS, InfiniteMemory
from mlxlab.sizes import format_size

__all__ = [
    "CEILING_NAMES",
    "Forms",
    "format_ceilings",
    "format_columns",
    "format_summary",
    "list_ceilings",
    "list_notes",
    "name_traces",
    "read_content",
    "spec_names",
    "summarize",
    "title_of",
    "write_content",
    "write_json",
]

Forms: TypeAlias = Mapping[str, tuple[str, Callable[[Any], str]]]
"""By column: the heading, and how to write a value."""

_FORMS: Forms = {
    "reused": ("reused", "{:.1%}".format),
    "of_infinite": ("of in-\nfinite", "{:.1%}".format),
    "of_finite": ("of\nfinite", "{:.1%}".format),
    "of_any_position": ("of any\nplace", "{:.1%}".format),
    "new_session": ("new\nsession", "{:.1%}".format),
    "ttft_median_s": ("TTFT\nmedian s", "{:.2f}".format),
    "ttft_max_s": ("TTFT\nmax s", "{:.2f}".format),
    "stored_mib": ("stored\nMiB", "{:.0f}".format),
    "evicted": ("evicted\ntokens", "{:,}".format),
}
#: What is in force where so much can be reused.
CEILING_NAMES = {
    "infinite": "exact, infinite memory",
    "finite": "exact, the future known",
    "any_position": "any place",
}

_CEILING_FORMS: Forms = {
    "possible": ("possible", str),
    "users": ("users", str),
    "capacity": ("memory", lambda size: format_size(int(size))),
    "reused": ("reused", "{:.1%}".format),
    "median_s": ("TTFT est.\nmedian s", "{:.2f}".format),
    "mean_s": ("TTFT est.\nmean s", "{:.2f}".format),
}
_ESTIMATED: Forms = {
    "ttft_median_s": ("TTFT\nest. s", "{:.2f}".format),
    "ttft_max_s": ("max\nest. s", "{:.2f}".format),
}


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per strategy; what was not measured has no column.

    Columns: ``reused`` (token-weighted hit rate), its shares of what could be reused
    under the default rules with infinite memory (``of_infinite``), with the same
    capacity and all the future known (``of_finite``), and at any position
    (``of_any_position``), ``new_session`` (hit rate of the first requests of all
    sessions but each trace's first; sub-agents count as sessions), ``ttft_median_s``,
    ``ttft_max_s``, ``prefill_s`` (sum), ``restore_s`` (sum), ``stored_mib`` (peak),
    ``evicted`` (tokens).

    Args:
        rows: from :func:`mlxlab.compare`.
    """
    tokens = int(rows[rows.strategy == InfiniteMemory.name].prompt_tokens.sum())
    groups = rows.groupby(spec_names(rows), sort=False)
    summaries = {name: _summarize(own, tokens) for name, own in groups}
    summary = pd.DataFrame(summaries.values(), index=pd.Index(summaries, name=None))
    summary = summary.dropna(axis="columns", how="all")
    manifest = rows.attrs.get("manifest", {})
    summary.attrs["estimated"] = manifest.get("simulated") and "estimated" in manifest
    return summary


def format_summary(summary: pd.DataFrame) -> pd.DataFrame:
    """The part of a summary that fits a terminal, as text under short headings."""
    forms = {**_FORMS, **_ESTIMATED} if summary.attrs.get("estimated") else _FORMS
    if "of_finite" in summary and (summary.of_finite == summary.of_infinite).all():
        summary = summary.drop(columns="of_finite")  # nothing had to go
    columns = format_columns(summary, forms)
    return pd.DataFrame({"strategy": summary.index, **columns})


def format_columns(frame: pd.DataFrame, forms: Forms) -> dict[str, list[str]]:
    """Text under headings for the columns that there are; empty where a value lacks."""
    return {
        heading: ["" if pd.isna(value) else form(value) for value in frame[column]]
        for column, (heading, form) in forms.items()
        if column in frame
    }


def list_ceilings(rows: pd.DataFrame) -> pd.DataFrame:
    """What is possible on the traffic of a comparison, in any case and in its memory.

    Columns: ``possible``, ``capacity`` (bytes; what infinite memory came to; missing
    where none counts), ``reused`` (share of all prompt tokens), ``median_s`` (to the
    first token, estimated). Capacities that hold everything are left out.

    Args:
        rows: from :func:`mlxlab.compare`.
    """
    own = rows[rows.strategy == InfiniteMemory.name]  # the rules that count
    tokens = own.prompt_tokens.sum()
    most = int(own.stored_bytes.max())
    mib = -(-most >> 20) << 20
    frames: list[tuple[str, Any, pd.DataFrame]] = [("infinite", mib, own)]
    for capacity, same in rows[rows.capacity < most].groupby("capacity"):
        one = same[spec_names(same) == spec_names(same).iloc[0]]
        frames.append(("finite", capacity, one))
    frames.append(("any_position", None, own))
    return pd.DataFrame(
        {
            "possible": CEILING_NAMES[name],
            "capacity": capacity,
            "reused": frame[name].sum() / tokens,
            "median_s": frame[f"{name}_s"].median(),
        }
        for name, capacity, frame in frames
    )


def format_ceilings(ceilings: pd.DataFrame) -> pd.DataFrame:
    """What is possible, as text under short headings; empty columns left out."""
    shown = ceilings.dropna(axis="columns", how="all")
    return pd.DataFrame(format_columns(shown, _CEILING_FORMS))


def spec_names(rows: pd.DataFrame) -> pd.Series[str]:
    """A strategy's name for every row, with its rules where not all are in force."""
    rules = rows.rules.where(rows.rules != "all").str.replace(",", "+")
    return rows.strategy + ("@" + rules).fillna("")


def name_traces(manifest: Mapping[str, Any]) -> str:
    """Of what was replayed: names, or how many if they fill more than a line."""
    names = [trace["name"] for trace in manifest["traces"]]
    return ", ".join(names) if len(names) < 4 else f"{len(names)} traces"


def title_of(rows: pd.DataFrame) -> str:
    """One line on what was replayed and how."""
    manifest = rows.attrs["manifest"]
    traces = name_traces(manifest)
    requests = len(rows[["session", "request"]].drop_duplicates())
    how = "simulated" if manifest["simulated"] else manifest["device"]
    return f"{traces}: {requests} requests, model {manifest['model']['name']}, {how}"


def list_notes(rows: pd.DataFrame) -> list[str]:
    """Warnings, the BLAS in use, what was left out, what was not rendered as meant."""
    manifest = rows.attrs["manifest"]
    return [
        *manifest.get("warnings", ()),
        *([f"BLAS: {manifest['blas']}"] if "blas" in manifest else []),
        *([_estimate(manifest)] if "estimated" in manifest else []),
        *(
            f"trace {trace['name']}: {reason} ({times:,} times)"
            for trace in manifest["traces"]
            # Findings kept from before reasons were told have none.
            for reason, times in trace.get("skipped", {}).items()
        ),
        *(f"{note} ({times} times)" for note, times in manifest["notes"].items()),
    ]


def _estimate(manifest: Mapping[str, Any]) -> str:
    estimated = manifest["estimated"]
    day, off = estimated["calibrated"], f"{estimated['median_error']:.0%}"
    source = f"{estimated['points']} points of {day}, {off} off in the median"
    if manifest["simulated"]:
        return f"seconds are estimated by {source}"
    return f"seconds of what is possible are estimated by {source}"


def write_json(rows: pd.DataFrame, path: str | Path) -> None:
    """Write ``{"manifest": ..., "rows": [...]}``, whole or not at all.

    Raises:
        MlxlabError: the file cannot be written.
    """
    records = json.loads(rows.to_json(orient="records", double_precision=6))
    write_content({"manifest": rows.attrs["manifest"], "rows": records}, path)


def write_content(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON object, whole or not at all; packed if the name ends in ``.gz``.

    Raises:
        MlxlabError: the file cannot be written.
    """
    data = json.dumps(content, indent=1).encode() + b"\n"
    if Path(path).suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # equal content, equal files
    try:
        with replaced(Path(path)) as file:
            file.write(data)
    except OSError as error:
        raise MlxlabError(f"{path}: {error.strerror}; give a file to write") from None


def read_content(path: str | Path) -> Any:
    """Read what :func:`write_content` wrote.

    Raises:
        MlxlabError: the file cannot be read, or holds no JSON.
    """
    try:
        data = Path(path).read_bytes()
        return json.loads(gzip.decompress(data) if Path(path).suffix == ".gz" else data)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no JSON in it"
        raise MlxlabError(f"{path}: {reason}; give a file that was written") from None


def _hit_rate(rows: pd.DataFrame) -> float:
    """Reused share of all prompt tokens."""
    return float(rows.reused_tokens.sum() / rows.prompt_tokens.sum())


def _summarize(rows: pd.DataFrame, tokens: int) -> dict[str, Any]:
    """A row of the summary.

    Args:
        rows: of one spec.
        tokens: of all prompts under the rules that the ceilings are for.
    """
    reused = _hit_rate(rows)
    most = {name: rows[name].sum() / tokens for name in CEILINGS}
    starts = rows.groupby("session", sort=False).head(1)
    trace = starts.session.str.rpartition(":")[0]
    starts = starts[trace.duplicated()]
    return {
        "reused": reused,
        **{f"of_{name}": reused / m if m else None for name, m in most.items()},
        "new_session": _hit_rate(starts) if len(starts) else None,
        "ttft_median_s": rows.ttft_s.median(),
        "ttft_max_s": rows.ttft_s.max(),
        "prefill_s": rows.prefill_s.sum(min_count=1),
        "restore_s": rows.restore_s.sum(min_count=1),
        "stored_mib": rows.stored_bytes.max() / 2**20,
        "evicted": int(rows.evicted.sum()),
    }
