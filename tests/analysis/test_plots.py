"""Plots: files that are pictures, and nothing for what was not measured."""

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from mlxlab.analysis.calibration import Calibration
from mlxlab.analysis.compare import compare
from mlxlab.analysis.comparison import Comparison
from mlxlab.analysis.misses.result import Misses
from mlxlab.analysis.misses.run import misses as find_misses
from mlxlab.analysis.plots import (
    plot_capacity,
    plot_causes,
    plot_costs,
    plot_layouts,
    plot_strip,
    plot_trials,
    save_misses_plots,
    save_plots,
)
from mlxlab.analysis.plots.figures import request_labels
from mlxlab.analysis.plots.style import INK, role_style, strategy_styles
from mlxlab.analysis.sweep import sweep
from mlxlab.analysis.tune import tune
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import find_model
from mlxlab.models.geometry import known_layout
from mlxlab.prompt import Role
from mlxlab.strategies import STRATEGIES
from tests.replay.test_cost_model import fitted
from tests.support.exchanges import small_trace


def test_saves_a_picture_per_question(tmp_path: Path) -> None:
    compared = compare(small_trace(), strategies="prefix,paged", progress=False)
    written = save_plots(compared, tmp_path)
    assert {path.name for path in written} == {
        "hit_rate.svg",
        "segments.svg",
        "memory.svg",
        "ttft.svg",
    }
    assert all(path.read_bytes().startswith(b"<svg") for path in written)


@pytest.fixture(scope="module")
def simulated() -> Comparison:
    return compare(small_trace(), simulate=True, progress=False)


def test_a_simulation_has_no_times_to_plot(
    simulated: Comparison, tmp_path: Path
) -> None:
    written = save_plots(simulated, tmp_path)
    assert not any("ttft" in path.name for path in written)


def test_a_folder_that_cannot_be_made_is_named(
    simulated: Comparison, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MlxlabError, match=r"hit_rate\.svg"):
        save_plots(simulated, tmp_path / "file")


@pytest.fixture(scope="module")
def misses() -> Misses:
    return find_misses(small_trace(), strategy="prefix@none", progress=False)


def corners_of(blocks: Any) -> Any:
    """Corners of each bar, shape ``[n, 5, 2]``."""
    return blocks.get_path().vertices.reshape(-1, 5, 2)


def test_a_strip_covers_every_prompt_and_names_its_main_cause(misses: Misses) -> None:
    (axes,) = plot_strip(misses).axes
    blocks = [own for own in axes.patches if own.get_gid() == "blocks"]
    drawn = sum(np.ptp(corners_of(own), axis=1)[:, 0].sum() for own in blocks)
    assert drawn == misses.requests.prompt_tokens.sum()
    shown = " ".join(text.get_text() for text in axes.texts)
    assert all(cause in shown for cause in misses.requests.cause)
    assert "evicted by #" in shown


def test_a_narrow_strip_has_its_texts_above_and_within(misses: Misses) -> None:
    figure = plot_strip(misses, narrow=True)
    assert figure.get_figwidth() * 96 < 360  # pixels of a small telephone
    (axes,) = figure.axes
    blocks = [own for own in axes.patches if own.get_gid() == "blocks"]
    drawn = sum(np.ptp(corners_of(own), axis=1)[:, 0].sum() for own in blocks)
    assert drawn == misses.requests.prompt_tokens.sum()
    said = [text.get_text() for text in axes.texts]
    for name, row in zip(
        request_labels(misses.requests), misses.requests.itertuples(), strict=True
    ):
        reason = said[said.index(name) + 1]
        assert reason.startswith(f"{row.missed_tokens:,} computed: {row.cause}")
    edge = figure.bbox.x1
    assert all(text.get_window_extent().x1 <= edge for text in axes.texts)


def test_pictures_of_a_page_can_be_told_apart(misses: Misses) -> None:
    def hatches(salt: str) -> set[str]:
        return set(re.findall(r"url\(#(\w+)\)", plot_strip(misses).to_svg(salt)))

    assert hatches("0")
    assert not hatches("0") & hatches("1")


def test_a_long_name_leaves_room_for_the_cells(simulated: Comparison) -> None:
    name = "paged:checkpoints=system+tools+environment+prompt,share=25,capacity=4GiB"
    figure = replace(
        simulated, requests=simulated.requests.assign(strategy=name)
    ).plot()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    (label,) = axes.get_yticklabels()
    assert label.get_text().replace("\n", "") == name
    assert max(map(len, label.get_text().split("\n"))) <= 31
    assert axes.get_window_extent().width > figure.bbox.width / 2


def test_labels_of_many_requests_do_not_touch(simulated: Comparison) -> None:
    rows = [
        simulated.requests.assign(request=simulated.requests.request + 100 * i)
        for i in range(25)
    ]
    many = replace(simulated, requests=pd.concat(rows, ignore_index=True))
    figure = many.plot()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = axes.get_xticklabels()
    count = many.requests[["session", "request"]].drop_duplicates().shape[0]
    assert count > 200
    assert 20 <= len(labels) <= 40
    distance = np.diff([label.get_position()[0] for label in labels]).min()
    points = distance / count * axes.get_window_extent().width / figure.dpi * 72
    # A slanted line of text takes its height over the sine of its slant.
    assert points > labels[0].get_fontsize() / np.sin(np.deg2rad(60))
    # Each stands below its own request.
    order = many.requests.drop_duplicates(["session", "request"], ignore_index=True)
    named = dict(enumerate(request_labels(order)))
    assert all(
        named[int(label.get_position()[0])] == label.get_text() for label in labels
    )


def test_a_break_is_framed_in_its_own_row_and_wide_enough_to_see(
    misses: Misses,
) -> None:
    figure = plot_strip(misses)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    marks = [own for own in axes.patches if own.get_gid() == "break"]
    bold = [text for text in axes.texts if text.get_fontweight() == "bold"]
    rows = {round(text.get_position()[1]) for text in bold}
    assert rows
    assert {round(corners_of(mark)[0][:, 1].mean()) for mark in marks} == rows
    inches = axes.get_window_extent().width / figure.dpi
    per_token = inches * 96 / np.ptp(axes.get_xlim())
    for mark in marks:
        assert np.ptp(corners_of(mark)[0][:, 0]) * per_token >= 3 - 1e-6


def test_causes_have_a_bar_each_with_what_would_have_helped(misses: Misses) -> None:
    (axes,) = plot_causes(misses).axes
    summary = misses.summary()
    assert [text.get_text().split("; ")[1] for text in axes.texts] == list(
        summary.remedy
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == list(summary.cause)


def test_saves_both_pictures_of_misses(misses: Misses, tmp_path: Path) -> None:
    written = save_misses_plots(misses, tmp_path)
    assert [path.name for path in written] == ["strip.svg", "causes.svg"]
    assert all(path.read_bytes().startswith(b"<svg") for path in written)


def test_capacity_has_a_line_for_each_strategy_and_two_bounds() -> None:
    swept = sweep(
        small_trace(),
        strategies="prefix,paged:block=16",
        capacities=[1 << 18, 1 << 20],
        scheduler="here",
        progress=False,
    )
    (axes,) = plot_capacity(swept).axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["prefix", "paged:block=16", "optimal", "unlimited"]
    best = swept.bounds.reused[swept.bounds.bound == "optimal"]
    drawn = np.asarray(axes.lines[2].get_ydata(), float)
    assert drawn.tolist() == pytest.approx(best.tolist())
    assert len(drawn) == 2


def test_costs_show_points_and_what_was_fitted() -> None:
    environment = {"device": "d", "blas": "b", "chunk": 1000}
    calibrated = Calibration.of(fitted(), find_model(), environment)
    prefill, restore = plot_costs(calibrated).axes
    assert len(prefill.lines) == 2 * 4
    assert len(restore.lines) == 2
    drawn = np.asarray(prefill.lines[0].get_ydata(), float)
    assert drawn[0] == pytest.approx(fitted().prefill_s(0, 16))


def test_capacity_has_a_panel_for_each_number_of_users() -> None:
    swept = sweep(
        small_trace(), "paged", users=[1, 2], scheduler="here", progress=False
    )
    titles = [axes.get_title(loc="left") for axes in plot_capacity(swept).axes]
    assert titles == ["users: 1", "users: 2"]


def test_trials_have_a_row_for_each_strategy_and_mark_the_best() -> None:
    tuned = tune(small_trace(), memory="1MiB", trials=8, progress=False)
    (axes,) = plot_trials(tuned).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == list(tuned.summary().name)
    drawn = sum(len(np.asarray(line.get_xdata())) for line in axes.lines)
    assert drawn == len(tuned.requests) + 1
    assert tuned.best.strategy in axes.texts[0].get_text()


def test_a_picture_shows_itself_in_the_ink_of_the_page(misses: Misses) -> None:
    figure = plot_causes(misses)
    shown = figure._repr_mimebundle_()
    assert shown["text/html"].startswith("<svg")
    assert "currentColor" in shown["text/html"]
    assert INK not in shown["text/html"]
    assert shown["image/png"].startswith(b"\x89PNG")
    assert figure.to_svg() == figure.to_svg()


def test_a_file_follows_the_colour_scheme_of_its_reader(
    misses: Misses, tmp_path: Path
) -> None:
    written = plot_causes(misses).save(tmp_path / "causes.svg").read_text()
    assert "prefers-color-scheme:dark" in written
    assert ET.fromstring(written).tag.endswith("svg")
    assert plot_causes(misses).save(tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(MlxlabError, match=r"\.svg or \.png"):
        plot_causes(misses).save(tmp_path / "causes.pdf")


def test_roles_and_strategies_stay_apart_without_colour() -> None:
    hatches = {str(role): role_style(role)["hatch"] for role in Role}
    looks = {(role_style(r)["facecolor"], hatches[str(r)]) for r in Role}
    assert len(looks) == len(Role) - 2  # answers are assistant text, tags are template
    shown = [hatches[r] for r in ("tools", "inline-system", "tool-result", "assistant")]
    assert all(a != b for a, b in combinations(shown, 2))
    styles = strategy_styles([*STRATEGIES, "paged:block=16", "own", "another"])
    lines = [(s["marker"], s["linestyle"]) for s in styles.values()]
    assert len(set(lines)) == len(lines)
    assert styles["paged"]["color"] == styles["paged:block=16"]["color"]
    assert styles["paged"] == strategy_styles(["paged"])["paged"]


def test_many_variants_of_one_strategy_are_told_apart() -> None:
    variants = ["paged", *(f"paged:block={n}" for n in range(1, 15))]
    styles = strategy_styles(variants)
    looks = {(s["color"], s["marker"], s["linestyle"]) for s in styles.values()}
    assert len(looks) == len(variants)
    assert len({s["color"] for s in list(styles.values())[:8]}) == 8
    assert styles["paged"] == strategy_styles(["paged"])["paged"]


def test_layouts_are_drawn_with_both_sizes() -> None:
    names = ("gpt-oss-20b", "DeepSeek-V3.1", "Qwen3-Coder-Next")
    left, right = plot_layouts({name: known_layout(name) for name in names}).axes
    bars: list[list[Any]] = [list(axes.patches) for axes in (left, right)]
    widths = [[bar.get_width() for bar in own] for own in bars]
    assert widths[0] == pytest.approx([24, 61 * 1152 / 1024, 24])
    assert widths[1] == pytest.approx([128, 0, 36 * 2146304 / (24 << 10)])
    notes = [text.get_text() for text in right.texts]
    assert notes == ["3MiB", "none: cut anywhere", "74MiB"]
