"""Line magics for the verbs: ``%compare sessions`` runs what ``mlxlab compare`` runs.

A magic returns the object that the Python verb returns, and the notebook shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import typer
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML, display
from typer.core import TyperCommand
from typer.main import get_command

from mlxlab.cli import app
from mlxlab.cli.app import describe_error
from mlxlab.cli.screen import Answer, Screen
from mlxlab.errors import MlxlabError
from mlxlab.jupyter.completion import complete_line
from mlxlab.jupyter.lines import split_line
from mlxlab.jupyter.magics import ServeMagics

__all__ = ["register_verbs", "unregister_verbs"]

#: Commands that are magics; ``serve`` is one too, with a server that it keeps.
VERBS = (
    *("strategies", "rules", "read-trace", "misses", "compare", "report"),
    *("calibrate", "sweep", "tune", "fidelity"),
    *("record", "import-trace", "anonymize", "export-trace"),
)

_HOOK = "complete_command"


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


def _show(item: Any) -> None:
    if isinstance(item, str):
        print(item)
    elif hasattr(item, "itertuples"):
        from mlxlab.analysis.tables import html_table

        display(HTML(html_table(item)))
    else:
        from rich.console import Console

        Console(force_jupyter=False).print(item)


def register_verbs(shell: InteractiveShell) -> None:
    """Add a magic for each verb, and the completion of their lines."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for name in VERBS:
        magic = _make_magic(commands[name])
        shell.register_magic_function(magic, "line", magic.__name__)
    magics = {name.replace("-", "_"): commands[name] for name in (*VERBS, "serve")}

    own = {"serve": list(ServeMagics.serve.parser._option_string_actions)}

    def complete(shell: InteractiveShell, event: Any) -> list[str]:
        return complete_line(magics, event.text_until_cursor, event.symbol, own)

    shell.set_hook(_HOOK, complete, re_key=_pattern(magics))


def unregister_verbs(shell: InteractiveShell) -> None:
    """Remove what :func:`register_verbs` added."""
    names = [name.replace("-", "_") for name in VERBS]
    for name in names:
        shell.magics_manager.magics["line"].pop(name, None)
    hooks = shell.strdispatchers[_HOOK].regexs
    hooks.pop(re.compile(_pattern([*names, "serve"])), None)


def _pattern(names: Any) -> str:
    return rf"(?s).*%({'|'.join(names)})\s"


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
