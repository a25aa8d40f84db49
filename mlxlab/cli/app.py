"""The application that commands register with, and what they print on."""

from __future__ import annotations

import logging
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from mlxlab.analysis.result import Result
from mlxlab.analysis.tables import lay_out

__all__ = ["app", "console", "print_names", "print_result"]

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


def print_result(result: Result, on: Console = console) -> None:
    """Print a result's title, sentences, tables and notes."""
    for line in (*result.title.split("\n"), *result.lines()):
        on.print(line, highlight=False, markup=False)
    for frame in result.tables():
        on.print(lay_out(frame, on.width))
    for note in result.notes:
        on.print(note, highlight=False, markup=False)
