"""Plots: files that are pictures, and nothing for what was not measured."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlxlab.analysis.compare import compare
from mlxlab.analysis.misses.explain import Misses, explain
from mlxlab.analysis.plots import (
    plot_capacity,
    plot_causes,
    plot_costs,
    plot_strip,
    save_misses_plots,
    save_plots,
)
from mlxlab.analysis.segments import count_segments
from mlxlab.analysis.sweep import sweep
from mlxlab.errors import MlxlabError
from tests.replay.test_cost_model import fitted
from tests.support.exchanges import small_trace


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


def test_capacity_has_a_line_for_each_strategy_and_both_ceilings() -> None:
    swept = sweep(
        small_trace(),
        strategies="prefix,paged:block=16",
        capacities=[1 << 18, 1 << 20],
        scheduler="here",
        progress=False,
    )
    (axes,) = plot_capacity(swept).axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["prefix", "paged:block=16", "finite", "infinite"]
    best = swept.finite / swept.prompt_tokens
    drawn = np.asarray(axes.lines[2].get_ydata(), float)
    assert drawn.tolist() == pytest.approx(best[:2].tolist())


def test_costs_show_points_and_what_was_fitted() -> None:
    prefill, restore = plot_costs(fitted()).axes
    assert len(prefill.lines) == 2 * 4
    assert len(restore.lines) == 2
    drawn = np.asarray(prefill.lines[0].get_ydata(), float)
    assert drawn[0] == pytest.approx(fitted().prefill_s(0, 16))
