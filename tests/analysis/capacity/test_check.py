"""The clock against the real engine; a busy machine is noisy, so limits are wide."""

from __future__ import annotations

from typing import Any

import pytest

from mlxlab import calibrate
from mlxlab.analysis.capacity.check import check_clock, check_plan
from mlxlab.errors import ConfigError
from mlxlab.replay.cost_model import CostModel
from tests.analysis.capacity.test_plan import COSTS
from tests.support.exchanges import small_trace


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> CostModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return calibrate(tokens=2500, seconds=15, progress=False).costs


@pytest.mark.slow
def test_users_wait_about_as_long_as_predicted(costs: CostModel) -> None:
    traces = [small_trace("first"), small_trace("second")]
    found = check_clock(traces, costs, users=(1, 2), think_times=0.0)
    assert list(found.users.unique()) == [1, 2]
    rows: Any = found.set_index(["users", "measure"])
    one = rows.loc[1, "reused"]
    assert one.predicted == one.measured > 0
    for users in (1, 2):
        wait = rows.loc[users, "ttft_p50_s"]
        assert wait.measured / 4 < wait.predicted < wait.measured * 4
        rate = rows.loc[users, "tokens_per_s"]
        assert rate.measured / 4 < rate.predicted < rate.measured * 4


@pytest.mark.slow
def test_what_plan_says_is_tried(costs: CostModel) -> None:
    traces = [small_trace("first"), small_trace("second")]
    lax = check_plan(traces, costs, ttft=1e3)
    assert lax.users.tolist() == [2]  # no trace for a third
    tight = check_plan(traces, costs, ttft=1e-6)
    assert tight.users.tolist() == [1]  # one more than none
    assert list(tight) == ["users", "limit_s", "predicted", "measured"]
    assert (tight.predicted > tight.limit_s).all()
    assert (tight.measured > tight.limit_s).all()


def test_more_users_than_traces_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 users: give as many traces, 1 are too"):
        check_clock([small_trace()], COSTS, users=(1, 2))
