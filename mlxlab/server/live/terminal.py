"""The live view in a terminal: open requests, and what all of them come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mlxlab.printable import printable
from mlxlab.server.live.pieces import Fill
from mlxlab.server.live.rows import Row
from mlxlab.server.live.text import describe_row, describe_totals, draw_strip

__all__ = ["draw_open"]

#: Open requests that are shown.
_ROWS = 10
_STYLES = {
    Fill.REUSED: "cyan dim",
    Fill.COMPUTED: "cyan",
    Fill.LEFT: "dim",
    Fill.BREAK: "bold red",
}


def draw_open(
    rows: Sequence[Row], totals: Mapping[str, Any], width: int, now: float
) -> Group:
    """Draw the open requests over a line of totals.

    Args:
        rows: the latest requests.
        totals: see :meth:`mlxlab.server.live.view.View.since`.
        width: columns of the terminal.
        now: Unix seconds.
    """
    line = Text(describe_totals(totals), "dim", no_wrap=True, overflow="ellipsis")
    shown = [row for row in rows if not row.is_over][-_ROWS:]
    return Group(
        *([_draw_rows(shown, max(width // 2 - 12, 8), now)] if shown else ()), line
    )


def _draw_rows(rows: Sequence[Row], cells: int, now: float) -> Table:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    longest = max(row.prompt_tokens or 0 for row in rows) or 1
    for row in rows:
        own = ceil(cells * (row.prompt_tokens or 0) / longest)
        pieces = draw_strip(row.pieces(), own)
        strip = Text.assemble(*((text, _STYLES[fill]) for fill, text in pieces))
        name, *others = (Text(printable(text)) for text in describe_row(row, now))
        table.add_row(name, strip, *others)
    return table
