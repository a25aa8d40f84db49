"""Plots: files that are pictures, and nothing for what was not measured."""

from pathlib import Path

import pytest

from mlxlab.errors import MlxlabError
from mlxlab.plots import save_plots
from mlxlab.replay import compare
from tests.replay.traffic import small_trace


def test_saves_a_picture_per_question(tmp_path: Path) -> None:
    comparison = compare(small_trace(), strategies="prefix,paged", progress=False)
    written = save_plots(comparison, tmp_path)
    assert {path.name for path in written} == {
        "hit_rate.png",
        "segments.png",
        "memory.png",
        "ttft.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_simulation_has_no_times_to_plot(tmp_path: Path) -> None:
    comparison = compare(small_trace(), simulate=True, progress=False)
    assert not any("ttft" in path.name for path in save_plots(comparison, tmp_path))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    comparison = compare(small_trace(), simulate=True, progress=False)
    with pytest.raises(MlxlabError, match=r"hit_rate\.png"):
        save_plots(comparison, tmp_path / "file")
