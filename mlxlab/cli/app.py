"""The application that commands register with."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlxlab.cli.screen import Answer, Screen, Terminal
from mlxlab.printable import printable

__all__ = ["DECIDE", "SEE", "SERVE", "SHARE", "app", "describe_error", "screen_of"]

#: Groups of commands in the help.
SEE, DECIDE, SERVE, SHARE = "See", "Decide", "Serve", "Share"


class _Commands(TyperGroup):
    """Lists commands in groups, and shows the answer of the command that ran."""

    def invoke(self, ctx: Any) -> None:
        answer = super().invoke(ctx)
        if isinstance(answer, Answer):
            screen_of(ctx).show(answer)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        longest = max(map(len, self.commands))
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            limit = formatter.width - longest - 6
            row = (name.ljust(longest), command.get_short_help_str(limit))
            groups.setdefault(getattr(command, "rich_help_panel", ""), []).append(row)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=_Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would swallow the brackets in our help texts
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mlxlab {version('mlxlab')}")
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every cache hit and miss.")
    ] = False,
    progress: Annotated[
        bool | None,
        typer.Option(
            envvar="MLXLAB_PROGRESS",
            help="Show progress bars; by default on terminals only.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Replay coding-agent requests through KV-cache strategies on MLX."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        return
    context.obj = Terminal(progress)
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False)
    level = logging.INFO if verbose else logging.WARNING
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _Printable(logging.Formatter):
    """Formats messages, which may quote what others sent."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def screen_of(context: typer.Context) -> Screen:
    """Return the screen that a command shows its answer on."""
    screen: Screen = context.obj
    return screen


def describe_error(error: Exception) -> str:
    """Return one line for an error of the command line, a verb or the system."""
    if not isinstance(error, typer.TyperException):
        return printable(" ".join(str(error).split()))
    near = getattr(error, "possibilities", None)
    hint = f"; did you mean {near[0]}?" if near else ""
    message = error.message if near else error.format_message()
    return printable(" ".join(f"{message.rstrip('.')}{hint}".split()))
