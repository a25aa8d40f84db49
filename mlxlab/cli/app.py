"""The application that commands register with, and what they print on."""

from __future__ import annotations

import logging
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


def table(readable: DataFrame, gap: int) -> Table:
    """A frame of text, its first column names and the others numbers."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, gap, 0, 0))
    for i, column in enumerate(readable.columns):
        shown.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in readable.itertuples(index=False):
        shown.add_row(*row)
    return shown
