"""The command that copies the notebooks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mlxlab.cli.app import SHARE, app
from mlxlab.printable import printable


@app.command("notebooks", rich_help_panel=SHARE)
def copy(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Copy the notebooks to this folder."),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Replace notebooks that are there.")
    ] = False,
) -> None:
    """Copy the notebooks to a folder."""
    from mlxlab.notebooks import copy_notebooks

    for path in copy_notebooks(folder, force=force):
        typer.echo(printable(str(path)))
    typer.echo(printable(f"Now run  jupyter lab {shlex.quote(str(folder))}"))
