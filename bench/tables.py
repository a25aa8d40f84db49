"""Tables of first tokens on recorded requests."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.measurement import Kind

__all__ = ["median_requests", "reuse_table", "seconds_table"]

#: Column, kind of request, aggregation.
_SECONDS = (
    ("turn 1", Kind.TURN_1, "median"),
    ("warm turns", Kind.WARM, "median"),
    ("slowest", Kind.WARM, "max"),
    ("new session", Kind.NEW_SESSION, "median"),
    ("sub-agents", Kind.SUB_AGENTS, "median"),
)
_REUSE = (Kind.TURN_1, Kind.WARM, Kind.NEW_SESSION, Kind.SUB_AGENTS)


def median_requests(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the medians over the rounds, one row per server and request."""
    keys = ["server", "kind", "trace", "request"]
    columns = ["ttft_s", "prompt_tokens", "reused_tokens"]
    return rows.groupby(keys, sort=False)[columns].median().reset_index()


def seconds_table(requests: pd.DataFrame, base: str) -> Table:
    """Return the seconds to the first token; in brackets, the ratio to one server's.

    Args:
        requests: from :func:`median_requests`.
        base: name of this server. If it is missing, so are the ratios.
    """
    title = f"seconds to first token (times {base})"
    table = _table(title, [column for column, *_ in _SECONDS])
    rows = {
        str(server): [
            float(own.ttft_s[own.kind == kind].agg(how)) for _, kind, how in _SECONDS
        ]
        for server, own in requests.groupby("server", sort=False)
    }
    for server, seconds in rows.items():
        if server == base or base not in rows:
            cells = [f"{own:.2f}" for own in seconds]
        else:
            pairs = zip(seconds, rows[base], strict=True)
            cells = [f"{own:.2f} ({own / its:.2f})" for own, its in pairs]
        table.add_row(server, *cells)
    return table


def reuse_table(requests: pd.DataFrame) -> Table:
    """Return the prompt tokens of all requests, and the reused ones as reported.

    Args:
        requests: from :func:`median_requests`.
    """
    table = _table("thousand tokens reused of prompts, as reported", _REUSE)
    for server, own in requests.groupby("server", sort=False):
        table.add_row(str(server), *(_reuse(own[own.kind == kind]) for kind in _REUSE))
    return table


def _reuse(requests: pd.DataFrame) -> str:
    if requests.prompt_tokens.isna().any():
        return "-"
    reused, prompt = requests.reused_tokens.sum(), requests.prompt_tokens.sum()
    return f"{reused / 1000:.1f} of {prompt / 1000:.1f}"


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table("server", box=SIMPLE_HEAD, title=title, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    return table
