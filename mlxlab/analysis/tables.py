"""Tables of results, laid out for a terminal or as HTML."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlxlab.printable import printable
from mlxlab.sizes import format_size

__all__ = [
    "Forms",
    "format_bounds",
    "format_columns",
    "html_table",
    "lay_out",
    "list_records",
    "read_records",
    "text_table",
]

Forms: TypeAlias = Mapping[str, tuple[str, Callable[[Any], str]]]
"""By column: the heading, and the function that writes a value."""

#: Characters of a text table.
WIDTH = 100

#: Characters of a name that is never broken, and the fewest for a column of words.
_NAME = 20
_WORD = 12

#: Also outside notebooks, whose style sheets would give it.
_PADDING = "padding: 0.2em 0.6em"

_MIB = 1 << 20

#: Readable names of the bounds.
_BOUND_NAMES = {
    "unlimited": "exact, unlimited memory",
    "optimal": "exact, optimal eviction",
    "position_independent": "any position",
    "placement": "best checkpoints",
}


def _memory(size: int) -> str:
    """Whole MiB from 1 MiB on: more digits of a peak say nothing."""
    return format_size(size if size < _MIB else -(-size // _MIB) * _MIB)


_BOUND_FORMS: Forms = {
    "bound": ("bound", lambda name: _BOUND_NAMES[name]),
    "users": ("users", str),
    "memory": ("memory", _memory),
    "reused": ("reused", "{:.1%}".format),
    "ttft_median_s": ("TTFT est.\nmedian s", "{:.2f}".format),
    "ttft_mean_s": ("TTFT est.\nmean s", "{:.2f}".format),
}


def format_columns(frame: pd.DataFrame, forms: Forms) -> dict[str, list[str]]:
    """Return the frame's columns as text; missing values become empty."""
    return {
        heading: ["" if pd.isna(value) else form(value) for value in frame[column]]
        for column, (heading, form) in forms.items()
        if column in frame
    }


def format_bounds(bounds: pd.DataFrame) -> pd.DataFrame:
    """Return a result's bounds as text, without bounds that no memory limits.

    Args:
        bounds: from :func:`mlxlab.replay.bounds.tabulate_bounds`.
    """
    most = bounds.memory[bounds.bound == "unlimited"].max()
    loose = (bounds.bound == "optimal") & (bounds.memory >= most).fillna(False)
    shown = bounds[~loose].dropna(axis="columns", how="all")
    if "users" in shown and shown.users.nunique() == 1:
        shown = shown.drop(columns="users")
    return pd.DataFrame(format_columns(shown, _BOUND_FORMS))


def list_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one dict of JSON values per row; missing values become None."""
    plain = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(key): value for key, value in record.items()} for record in plain]


def read_records(
    records: Sequence[Mapping[str, Any]], types: Mapping[str, str]
) -> pd.DataFrame:
    """Return a frame of the records that :func:`list_records` made.

    Args:
        records: one per row.
        types: the type of each column.

    Raises:
        KeyError, TypeError, ValueError: records or types of something else.
    """
    columns = {
        name: pd.Series([record[name] for record in records], dtype=dtype)
        for name, dtype in types.items()
    }
    return pd.DataFrame(columns)


def lay_out(frame: pd.DataFrame, width: int) -> Table:
    """Lay out a frame of text; numbers are never broken, nor are short names.

    Args:
        frame: text under headings that may have two lines.
        width: characters of a line.
    """
    frame = frame.map(printable)
    widths = [_width([column, *frame[column]]) for column in frame.columns]
    words = [
        i == 0 or frame[column].str.contains(" ").any()
        for i, column in enumerate(frame.columns)
    ]
    least = sum(_WORD if w else n for w, n in zip(words, widths, strict=True))
    room = width - least - len(widths) - 1  # a space beside each column
    gap = int(room + _WORD - widths[0] >= len(widths))
    name = widths[0] <= min(_NAME, room + _WORD - gap * len(widths))
    table = Table(box=SIMPLE_HEAD, padding=(0, gap, 0, 0))
    for i, column in enumerate(frame.columns):
        whole = name if i == 0 else not words[i]
        table.add_column(
            column,
            justify="left" if words[i] else "right",
            overflow="fold",
            no_wrap=whole,
            min_width=widths[i] if whole else None,
        )
    for row in frame.itertuples(index=False):
        table.add_row(*map(Text, row))  # not as markup
    return table


def text_table(frame: pd.DataFrame) -> str:
    """Return a frame of text as a plain table of at most 100 columns."""
    console = Console(
        width=WIDTH, file=io.StringIO(), color_system=None, force_jupyter=False
    )
    with console.capture() as captured:
        console.print(lay_out(frame, WIDTH), highlight=False)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(lines).strip("\n")


def html_table(frame: pd.DataFrame) -> str:
    """Return a frame of text as an HTML table; everything is escaped."""
    words = [
        i == 0 or bool(frame[column].str.contains(" ").any())
        for i, column in enumerate(frame.columns)
    ]
    aligned = ["left" if own else "right" for own in words]
    heads = [column.replace("-\n", "").replace("\n", " ") for column in frame.columns]
    rows = [_cells("th", heads, aligned)]
    rows += [_cells("td", row, aligned) for row in frame.itertuples(index=False)]
    head, *body = (f"<tr>{row}</tr>" for row in rows)
    content = f"<thead>{head}</thead><tbody>{''.join(body)}</tbody>"
    return f'<table style="margin: 0.5em 0">{content}</table>'


def _cells(tag: str, cells: Iterable[str], aligned: Iterable[str]) -> str:
    return "".join(
        f'<{tag} style="text-align: {side}; {_PADDING}">{escape(cell)}</{tag}>'
        for cell, side in zip(cells, aligned, strict=True)
    )


def _width(cells: Iterable[str]) -> int:
    """Characters of the longest line."""
    return max(len(line) for cell in cells for line in cell.split("\n"))
