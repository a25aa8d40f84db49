"""The command that copies the notebooks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mlxlab.cli.app import app, console


@app.command("notebooks")
def copy(
    folder: Annotated[Path, typer.Argument(help="Copy the notebooks to this folder.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace notebooks that are there.")
    ] = False,
) -> None:
    """Copy the notebooks to a folder."""
    from mlxlab.notebooks import copy_notebooks

    for path in copy_notebooks(folder, force=force):
        console.print(path, highlight=False, soft_wrap=True)
    command = f"Now run  jupyter lab {shlex.quote(str(folder))}"
    console.print(command, highlight=False, soft_wrap=True)
