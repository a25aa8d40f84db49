"""The command line: reads arguments, calls the library, prints the answer."""

from __future__ import annotations

import sys

import typer

from mlxlab.cli import (  # noqa: F401  they register commands
    analysis,
    planning,
    server,
    traces,
)
from mlxlab.cli.app import app, describe_error
from mlxlab.cli.interrupts import interruptible
from mlxlab.errors import MlxlabError

# isort: split
from mlxlab.cli import notebooks  # noqa: F401  the last command of its group

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; an error becomes one line and exit code 2.

    Ctrl-C ends it without a traceback. A shell shows that as status 130.
    """
    with interruptible():
        code = _run()
    sys.exit(code)


def _run() -> int:
    try:
        code: int = app(prog_name="mlxlab", standalone_mode=False)
    except typer.Abort:
        code = 1
    except typer.TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "mlxlab")
        print(f"{path}: {describe_error(error)}; see {path} --help", file=sys.stderr)
        code = 2
    except (MlxlabError, OSError) as error:
        print(f"mlxlab: {describe_error(error)}", file=sys.stderr)
        code = 2
    return code
