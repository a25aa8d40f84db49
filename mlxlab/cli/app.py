"""The application that commands register with, and what they print on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Annotated

import typer
from pandas import DataFrame
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

__all__ = ["app", "console", "print_names", "table"]

app = typer.Typer(
    help="Replay coding-agent traffic through KV-cache strategies on MLX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would swallow the brackets in our help texts
)
console = Console()

#: Characters of a name that is not broken over lines, and that words need at least.
_NAME = 20
_WORD = 12


@app.callback()
def configure(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every cache hit and miss.")
    ] = False,
) -> None:
    """Set up logging."""
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


def print_names(summaries: dict[str, str]) -> None:
    """A line each: a name and what it stands for."""
    grid = Table.grid(padding=(0, 2))
    for name, summary in summaries.items():
        grid.add_row(name, summary)
    console.print(grid)


def table(readable: DataFrame, on: Console = console) -> Table:
    """A frame of text; numbers are never broken, nor are short names if they fit."""
    widths = [_width([column, *readable[column]]) for column in readable.columns]
    words = [
        i == 0 or readable[column].str.contains(" ").any()
        for i, column in enumerate(readable.columns)
    ]
    least = sum(_WORD if w else n for w, n in zip(words, widths, strict=True))
    room = on.width - least - len(widths) - 1  # a space beside each column
    gap = int(room + _WORD - widths[0] >= len(widths))
    name = widths[0] <= min(_NAME, room + _WORD - gap * len(widths))
    shown = Table(box=SIMPLE_HEAD, padding=(0, gap, 0, 0))
    for i, column in enumerate(readable.columns):
        whole = name if i == 0 else not words[i]
        shown.add_column(
            column,
            justify="left" if words[i] else "right",
            overflow="fold",
            no_wrap=whole,
            min_width=widths[i] if whole else None,
        )
    for row in readable.itertuples(index=False):
        shown.add_row(*row)
    return shown


def _width(cells: Iterable[str]) -> int:
    """Characters of the longest line."""
    return max(len(line) for cell in cells for line in cell.split("\n"))
