"""Plots: files that are pictures, and nothing for what was not measured."""

from pathlib import Path

import pandas as pd
import pytest

from mlxlab.errors import MlxlabError
from mlxlab.plots import plot_causes, plot_strip, save_misses_plots, save_plots
from mlxlab.replay import Misses, compare, count_segments, explain
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


@pytest.fixture(scope="module")
def misses() -> Misses:
    return explain(small_trace(), strategy="prefix@none", progress=False)


def test_a_strip_covers_every_prompt_and_names_its_main_cause(misses: Misses) -> None:
    (axes,) = plot_strip(misses).axes
    drawn = sum(bar.get_width() for bar in axes.patches if hasattr(bar, "get_width"))
    assert drawn == misses.breaks.prompt_tokens.sum()
    shown = " ".join(text.get_text() for text in axes.texts)
    assert all(cause in shown for cause in misses.breaks.cause)
    assert "evicted by #" in shown


def test_causes_have_a_bar_each_with_what_would_have_helped(misses: Misses) -> None:
    (axes,) = plot_causes(misses).axes
    summary = misses.summary()
    assert [text.get_text().split("; ")[1] for text in axes.texts] == list(
        summary.remedy
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == list(summary.cause)


def test_saves_both_pictures_of_misses(misses: Misses, tmp_path: Path) -> None:
    written = save_misses_plots(misses, tmp_path)
    assert [path.name for path in written] == ["strip.png", "causes.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
