"""Plots: files that are pictures, and nothing for what was not measured."""

from pathlib import Path

import pandas as pd
import pytest

from mlxlab.errors import MlxlabError
from mlxlab.plots import save_plots
from mlxlab.replay import compare, count_segments
from tests.replay.traffic import small_trace


def test_saves_a_picture_per_question(tmp_path: Path) -> None:
    rows = compare(small_trace(), strategies="prefix,paged", progress=False)
    written = save_plots(rows, count_segments(small_trace()), tmp_path)
    assert {path.name for path in written} == {
        "hit_rate.png",
        "segments.png",
        "memory.png",
        "ttft.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


@pytest.fixture(scope="module")
def simulated() -> pd.DataFrame:
    return compare(small_trace(), simulate=True, progress=False)


def test_a_simulation_has_no_times_to_plot(
    simulated: pd.DataFrame, tmp_path: Path
) -> None:
    written = save_plots(simulated, count_segments(small_trace()), tmp_path)
    assert not any("ttft" in path.name for path in written)


def test_a_folder_that_cannot_be_made_is_named(
    simulated: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MlxlabError, match=r"hit_rate\.png"):
        save_plots(simulated, count_segments(small_trace()), tmp_path / "file")
