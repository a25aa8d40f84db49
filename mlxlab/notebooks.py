"""The notebooks that come with mlxlab, and a copy of them to work in."""

from __future__ import annotations

from pathlib import Path

from mlxlab.errors import NotebookError
from mlxlab.files import written

__all__ = ["copy_notebooks", "list_notebooks"]

_PACKAGE = Path(__file__).parent


def list_notebooks() -> list[Path]:
    """Return the notebooks in reading order.

    A checkout has them in ``notebooks/``, a wheel in the package.
    """
    for folder in (_PACKAGE.parent / "notebooks", _PACKAGE / "data/notebooks"):
        if found := sorted(folder.glob("*.ipynb")):
            return found
    return []


def copy_notebooks(folder: str | Path, *, force: bool = False) -> list[Path]:
    """Copy the notebooks into a folder, which is made if it is missing.

    Args:
        folder: the folder to copy to.
        force: whether to replace files that are there already.

    Returns:
        The copies, in reading order.

    Raises:
        NotebookError: a file is there already, or the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    copies = {source: folder / source.name for source in list_notebooks()}
    there = [copy for copy in copies.values() if copy.exists()]
    if there and not force:
        raise NotebookError(
            f"{there[0]}: exists already; give another folder, or --force to replace it"
        )
    for source, copy in copies.items():
        try:
            with written(copy) as file:
                file.write(source.read_bytes())
        except OSError as error:
            raise NotebookError(
                f"{copy}: {error.strerror}; give a folder that can be written"
            ) from None
    return list(copies.values())
