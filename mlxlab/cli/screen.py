"""Answers of commands, and the terminal that shows them."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlxlab.files import write_json
from mlxlab.printable import printable

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

__all__ = ["STDOUT", "Answer", "Item", "Screen", "Terminal"]

Item: TypeAlias = "str | pd.DataFrame | Table"
"""A text, or a table."""

#: The path that stands for the terminal's output.
STDOUT = Path("-")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a command; a :class:`Screen` shows it.

    Attributes:
        value: the object that the Python verb returned.
        content: returns the value as JSON values.
        json: the file for ``content``; ``-`` for the terminal's output.
        after: texts and tables to show after the value.
        written: files that the command wrote.
        width: columns that the tables need where no terminal sets the width.
        then: asks a person at a terminal what to do next.
    """

    value: object = None
    content: Callable[[], Mapping[str, Any]] = dict
    json: Path | None = None
    after: Sequence[Item] = ()
    written: Sequence[Path] = field(default=())
    width: int | None = None
    then: Callable[[], object] | None = None


class Screen(ABC):
    """The place where a command shows notes, progress and its answer.

    Attributes:
        progress: whether to show progress bars.
    """

    progress: bool

    @abstractmethod
    def note(self, text: str) -> None:
        """Show a line that is not part of the answer."""

    @abstractmethod
    def show_value(self, answer: Answer) -> None:
        """Show the value, and the texts and tables after it."""

    def show(self, answer: Answer) -> None:
        """Show an answer, or write it as JSON."""
        if answer.json == STDOUT:
            print(json.dumps(answer.content(), indent=1))
            return
        written = list(answer.written)
        if answer.json:
            write_json(answer.content(), answer.json)
            written.insert(0, answer.json)
        self.show_value(answer)
        if written:
            self.show_value(Answer(f"Written: {', '.join(map(str, written))}"))


class Terminal(Screen):
    """A terminal or a pipe. Standard output holds nothing but the answer.

    Args:
        progress: whether to show bars; None to show them on terminals only.
    """

    def __init__(self, progress: bool | None = None) -> None:
        self.progress = sys.stderr.isatty() if progress is None else progress

    def note(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def show(self, answer: Answer) -> None:
        super().show(answer)
        if answer.then and answer.json != STDOUT:
            answer.then()

    def show_value(self, answer: Answer) -> None:
        from rich.console import Console

        console = Console()
        if answer.width and not console.is_terminal:
            console = Console(width=answer.width)
        if isinstance(answer.value, str):
            _print_line(answer.value, console)
        elif answer.value is not None:
            _print_result(answer.value, console)
        for item in answer.after:
            _print_item(item, console)


def _print_result(value: object, console: Console) -> None:
    """Print a result's heading, tables and notes; other values as text."""
    from mlxlab.analysis.result import Result

    if not isinstance(value, Result):
        print(printable(str(value)), flush=True)
        return
    for line in value.heading():
        _print_line(line, console)
    for frame in value.tables():
        _print_item(frame, console)
    for note in value.notes:
        _print_line(note, console)


def _print_line(text: str, console: Console) -> None:
    console.print(printable(text), highlight=False, markup=False)


def _print_item(item: Item, console: Console) -> None:
    if isinstance(item, str):
        print(printable(item), flush=True)  # not wrapped: lines can be copied
        return
    from rich.table import Table

    if isinstance(item, Table):
        console.print(item)
        return
    from mlxlab.analysis.tables import lay_out  # pandas is slow to import

    console.print(lay_out(item, console.width))
