"""The command line: reads arguments, calls the library, prints the answer."""

from __future__ import annotations

import faulthandler
import sys
from contextlib import suppress

import typer

from mlxlab.cli import doctor  # noqa: F401  the first command of its group

# isort: split
from mlxlab.cli import (  # noqa: F401  they register commands
    analysis,
    audit,
    planning,
    server,
    traces,
)
from mlxlab.cli.app import app, describe_error
from mlxlab.cli.interrupts import interruptible
from mlxlab.errors import OUT_OF_MEMORY, MlxlabError

# isort: split
from mlxlab.cli import evictions, notebooks, plan  # noqa: F401  the last of groups

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; an error becomes one line and exit code 2.

    Ctrl-C ends it without a traceback. A shell shows that as status 130.
    """
    # Where the system has no memory, mlx ends the process; this says in which call.
    if sys.stderr and not faulthandler.is_enabled():
        with suppress(OSError):  # a stream without a file takes none
            faulthandler.enable(all_threads=False)
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
    except MemoryError:
        print(f"mlxlab: {OUT_OF_MEMORY}", file=sys.stderr)
        code = 2
    return code
