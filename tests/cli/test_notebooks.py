"""The notebooks that a user copies are those of the checkout."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlxlab.cli import app
from mlxlab.errors import NotebookError
from mlxlab.notebooks import copy_notebooks, list_notebooks

CHECKOUT = Path(__file__).parents[2] / "notebooks"


def test_the_checkouts_notebooks_are_listed_in_reading_order() -> None:
    assert list_notebooks() == sorted(CHECKOUT.glob("*.ipynb"))
    assert len(list_notebooks()) >= 2


def test_a_copy_holds_all_notebooks_whole(tmp_path: Path) -> None:
    copies = copy_notebooks(tmp_path / "a" / "b")
    assert [copy.name for copy in copies] == [n.name for n in list_notebooks()]
    for copy, source in zip(copies, list_notebooks(), strict=True):
        assert copy.read_bytes() == source.read_bytes()


def test_work_in_a_copy_is_kept_unless_forced(tmp_path: Path) -> None:
    copy = copy_notebooks(tmp_path)[1]
    copy.write_text("mine")
    with pytest.raises(NotebookError, match="exists already; give another folder"):
        copy_notebooks(tmp_path)
    assert copy.read_text() == "mine"
    copy_notebooks(tmp_path, force=True)
    assert copy.read_text() != "mine"


def test_nothing_is_copied_where_one_notebook_exists(tmp_path: Path) -> None:
    last = tmp_path / list_notebooks()[-1].name
    last.write_text("mine")
    with pytest.raises(NotebookError):
        copy_notebooks(tmp_path)
    assert list(tmp_path.iterdir()) == [last]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotebookError, match="give a folder that can be written"):
        copy_notebooks(tmp_path / "file")


def test_the_command_shows_the_copies_and_what_to_run_next(tmp_path: Path) -> None:
    folder = tmp_path / "my notebooks"
    done = CliRunner().invoke(app, ["notebooks", str(folder)])
    assert done.exit_code == 0, done.output
    assert all(str(folder / n.name) in done.output for n in list_notebooks())
    assert f"jupyter lab {shlex.quote(str(folder))}" in done.output
