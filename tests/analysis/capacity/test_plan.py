"""How many agents a machine carries."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest

import mlxlab as ml
from mlxlab.analysis.capacity.result import ASKED, Capacity
from mlxlab.analysis.plots import plot_carried_by_memory, save_capacity_plots
from mlxlab.cli.options import parse_seconds
from mlxlab.errors import ConfigError
from mlxlab.replay.cost_model import CostModel, Machine, Point
from mlxlab.replay.decoding_costs import Decoding
from tests.support.exchanges import small_trace

COSTS = CostModel(
    model="m",
    machine=Machine(system="s", processor="p", mlx="0", chunk=2048),
    device="d",
    blas="b",
    day=date(2026, 12, 1),
    prefill=(0.0, 0.0, 1e-3, 0.0, 0.0, 0.0),
    restore=(0.01, 0.0),
    points=(Point(start=0, stop=10, restore_s=0.0, prefill_s=0.01),),
    decode=Decoding(step=0.02, row=0.01, token=0.0, padded=0.0),
)


def planned(ttft: float, most: int = 8) -> Capacity:
    return ml.plan(small_trace(), ttft=ttft, most=most, progress=False, costs=COSTS)


def test_the_number_is_the_last_within_the_limit() -> None:
    lax = planned(ttft=1e6)
    rows = lax.requests[lax.requests.setup == ASKED].set_index("users")
    assert list(rows.index) == [1, 2, 4, 8]
    assert lax.carries() == 8
    assert lax.lines() == ["This machine carries 8 agents or more."]
    assert (rows.queue_p90_s <= rows.ttft_p90_s).all()
    assert rows.ttft_p90_s[8] > rows.ttft_p90_s[1]
    limit = float(rows.ttft_p90_s[2])
    tight = planned(ttft=limit)
    found = tight.carries()
    tried = tight.requests[tight.requests.setup == ASKED].users
    assert 2 <= found < 8
    assert found + 1 in set(tried)  # bisection has reached the limit
    assert tight.lines()[0] == f"This machine carries {found} agents."


def test_changes_are_tried() -> None:
    found = planned(ttft=1e6, most=1)
    assert list(found.requests.setup) == [
        ASKED,
        "memory 2GiB",
        "memory 8GiB",
        "memory 16GiB",
        "disk 64GiB",
        "evict=residual",
        "chunk 512",
    ]
    assert list(found.summary().carries) == [1] * 7
    memory = found.by_memory()
    assert list(memory.capacity // 2**30) == [2, 4, 8, 16]
    assert list(memory.carries) == [1] * 4


def test_a_limit_that_nothing_keeps_carries_nobody() -> None:
    found = planned(ttft=1e-6, most=4)
    assert found.carries() == 0
    assert "carries 0 agents" in found.lines()[0]
    assert found.lines()[1].startswith("Enough for 1: none")


@pytest.mark.parametrize("costs", [None, COSTS.model_copy(update={"decode": None})])
def test_without_seconds_of_decoding_tokens_are_counted(
    costs: CostModel | None,
) -> None:
    found = ml.plan(small_trace(), most=2, costs=costs, progress=False)
    assert not found.is_timed
    assert list(found.requests.users) == [1, 2]
    assert (found.requests.reused > 0).all()
    assert "mlxlab calibrate --force --model tiny" in found.lines()[0]


def test_the_layout_of_another_model_is_counted() -> None:
    found = ml.plan(small_trace(), most=1, layout="96KiB", progress=False)
    assert found.lines() == ["Counts only: another model's layout has no seconds here."]


def test_bad_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="give a ttft of more than 0 s"):
        planned(ttft=0.0)
    assert (parse_seconds("5s", "--ttft"), parse_seconds("200ms", "--ttft")) == (5, 0.2)
    for text in ("5m", "-1s", "nan", "inf", ""):
        with pytest.raises(ConfigError, match=r"--ttft .*give seconds > 0"):
            parse_seconds(text, "--ttft")


def test_pictures_show_users_changes_and_memory(tmp_path: Path) -> None:
    found = planned(ttft=1e6, most=2)
    names = [path.name for path in save_capacity_plots(found, tmp_path)]
    assert names == ["users.svg", "carried.svg", "memory.svg"]
    (axes,) = plot_carried_by_memory(found).axes
    (line,) = axes.get_lines()
    drawn = np.asarray(line.get_xdata())
    assert list(drawn) == list(found.by_memory().capacity)
    assert axes.get_xticklabels()[0].get_text() == "2GiB"
