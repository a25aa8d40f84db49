"""A server as HTML without scripts, as a saved notebook keeps it.

It has the page's colours, light or dark, and reads well without any style.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import ceil
from typing import TYPE_CHECKING

from mlxlab.client.launch import environment_lines
from mlxlab.server.live.rows import Row
from mlxlab.server.live.text import describe_row, describe_totals, draw_strip

if TYPE_CHECKING:
    from mlxlab.server.server import Server

__all__ = ["describe_server", "list_rows"]

#: Most requests that are shown, and characters of the longest strip.
_ROWS = 20
_CELLS = 40
_STYLE = "style='text-align:left; white-space:nowrap'"


def describe_server(server: Server) -> str:
    """Return address, settings and latest requests of a server, without its token."""
    requests = _list_requests(server)
    if not server.is_running:
        return f"<code>{escape(repr(server))}</code>{requests}"
    alias, notices = server.aliases.default, server.notices
    facts: dict[str, object] = {
        "URL": server.url,
        "token": "server.token (not shown: notebooks save their output)",
        "model": alias.model,
        "strategy": alias.strategy,
        "rules": alias.rules,
    }
    recording = server.meters()["recording"]
    if recording:
        failure = recording.get("failure")
        facts["recording"] = f"stopped: {failure}" if failure else recording["file"]
    return (
        _definitions(facts)
        + (_folded("Approximate: measured fidelity", notices) if notices else "")
        + _folded(
            "Claude Code: <code>mlxlab claude</code> in a terminal, or this "
            "environment and <code>ANTHROPIC_AUTH_TOKEN</code>",
            environment_lines(server.endpoint, token=False),
        )
        + requests
    )


def _definitions(facts: Mapping[str, object]) -> str:
    """Return a list; a click selects a value."""
    rows = "".join(
        f"<dt style='opacity:.7'>{key}</dt><dd style='margin:0'>"
        f"<code style='user-select:all'>{escape(str(value))}</code></dd>"
        for key, value in facts.items()
    )
    grid = "display:grid; grid-template-columns:max-content auto; gap:2px 1em; margin:0"
    return f"<dl style='{grid}'>{rows}</dl>"


def _folded(summary: str, lines: Iterable[str]) -> str:
    """Return lines that a click on the summary shows; the summary is HTML."""
    text = escape("\n".join(lines))
    return f"<details><summary>{summary}</summary><pre>{text}</pre></details>"


def _list_requests(server: Server) -> str:
    rows, totals = server.view.rows(), server.view.since()["totals"]
    if not rows:
        return ""
    latest = list_rows(rows[-_ROWS:], time.time())
    return f"<p>{escape(describe_totals(totals))}</p>{latest}"


def list_rows(rows: Sequence[Row], now: float) -> str:
    """Return a table of requests; "" without any.

    Args:
        rows: the requests.
        now: Unix seconds.
    """
    longest = max((row.prompt_tokens or 0 for row in rows), default=0) or 1
    lines = []
    for row in rows:
        name, *others = map(escape, describe_row(row, now))
        cells = ceil(_CELLS * (row.prompt_tokens or 0) / longest)
        strip = draw_strip(row.pieces(), cells)
        texts = ["".join(text for _, text in strip), *others]
        columns = "".join(f"<td {_STYLE}>{text}</td>" for text in texts)
        lines.append(f"<tr><th scope='row' {_STYLE}>{name}</th>{columns}</tr>")
    return f"<table><tbody>{''.join(lines)}</tbody></table>" if lines else ""
