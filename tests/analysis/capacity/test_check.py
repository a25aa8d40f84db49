"""The clock against the real engine; a busy machine is noisy, so limits are wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxlab import calibrate
from mlxlab.analysis.capacity.check import check_clock
from tests.support.exchanges import small_trace


@pytest.mark.slow
def test_users_wait_about_as_long_as_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    costs = calibrate(tokens=2500, seconds=15, progress=False).costs
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
