"""The command line: reads arguments, calls the library, prints. Decides nothing."""

from __future__ import annotations

import sys

from mlxlab.cli import (  # noqa: F401  they register commands
    analysis,
    notebooks,
    planning,
    server,
    traces,
)
from mlxlab.cli.app import app
from mlxlab.errors import MlxlabError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; our own errors become one line and exit code 2."""
    try:
        app()
    except MlxlabError as error:
        print(f"mlxlab: {error}", file=sys.stderr)
        sys.exit(2)
