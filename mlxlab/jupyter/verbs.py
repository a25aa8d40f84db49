"""Line magics for the verbs: ``%compare sessions`` runs what ``mlxlab compare`` runs.

A magic returns the object that the Python verb returns, and the notebook shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import typer
from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML, display
from rich.console import Console
from typer.core import TyperCommand
from typer.main import get_command

from mlxlab.analysis.tables import html_table
from mlxlab.cli import app
from mlxlab.cli.app import describe_error
from mlxlab.cli.screen import Answer, Item, Screen
from mlxlab.errors import MlxlabError
from mlxlab.jupyter.completion import complete_line
from mlxlab.jupyter.lines import split_line
from mlxlab.jupyter.magics import ServeMagics

__all__ = ["register_verbs", "unregister_verbs"]

#: Commands that are magics; ``serve`` is one too, with a server that it keeps.
VERBS = (
    *("strategies", "placements", "rules", "read-trace"),
    *("doctor", "misses", "compare", "report", "audit"),
    *("calibrate", "sweep", "tune", "fidelity", "evictions", "plan"),
    *("record", "import-trace", "anonymize", "export-trace"),
)


class _Notebook(Screen):
    """A cell. The value of the answer is the value of the magic."""

    progress = True

    def note(self, text: str) -> None:
        print(text)

    def show_value(self, answer: Answer) -> None:
        if isinstance(answer.value, str):
            print(answer.value)
        for item in answer.after:
            _show(item)


def _show(item: Item) -> None:
    if isinstance(item, str):
        print(item)
    elif isinstance(item, pd.DataFrame):
        display(HTML(html_table(item)))
    else:
        Console(force_jupyter=False).print(item)


def register_verbs(shell: InteractiveShell) -> None:
    """Add a magic for each verb, and the completion of their lines."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for name in VERBS:
        magic = _make_magic(commands[name])
        shell.magics_manager.register_function(magic, "line", magic.__name__)
    magics = {name.replace("-", "_"): commands[name] for name in (*VERBS, "serve")}

    own = {"serve": list(ServeMagics.serve.parser._option_string_actions)}

    @context_matcher()  # type: ignore[untyped-decorator]
    def complete_verb(context: CompletionContext) -> SimpleMatcherResult:
        found = complete_line(magics, context.text_until_cursor, context.token, own)
        texts = [SimpleCompletion(text) for text in found]
        return {"completions": texts, "suppress": bool(found), "ordered": True}

    shell.Completer.custom_matchers.append(complete_verb)


def unregister_verbs(shell: InteractiveShell) -> None:
    """Remove what :func:`register_verbs` added."""
    for name in VERBS:
        shell.magics_manager.magics["line"].pop(name.replace("-", "_"), None)
    matchers = shell.Completer.custom_matchers
    matchers[:] = [own for own in matchers if own.__module__ != __name__]


def _make_magic(command: TyperCommand) -> Callable[[str], object]:
    name = str(command.name).replace("-", "_")

    def magic(line: str) -> object:
        screen = _Notebook()
        try:
            answer = command.main(
                split_line(line),
                prog_name=f"%{name}",
                standalone_mode=False,
                obj=screen,
            )
            if not isinstance(answer, Answer):
                return None  # --help, or a verb without a value
            screen.show(answer)
        except (MlxlabError, OSError, typer.TyperException) as error:
            hint = "" if isinstance(error, MlxlabError) else f"; see %{name}?"
            raise UsageError(f"%{name}: {describe_error(error)}{hint}") from None
        return answer.value

    magic.__name__ = magic.__qualname__ = name
    magic.__doc__ = _help(command, name)
    return magic


def _help(command: TyperCommand, name: str) -> str:
    with command.make_context(f"%{name}", [], resilient_parsing=True) as context:
        text: str = command.get_help(context)
    return re.sub(r"\n  --help .*", "", text)
