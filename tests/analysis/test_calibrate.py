"""Calibrating for real, on the bundled model."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxlab.analysis.calibrate import LEAST, calibrate, check_costs, measure_load
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.replay.cost_model import recall_costs
from mlxlab.traces import load_trace
from tests.support.exchanges import small_trace

COLUMNS = ["restore_s", "prefill_s"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_what_is_measured_here_tells_what_a_replay_takes() -> None:
    found = calibrate(tokens=2500, seconds=90, progress=False)
    costs = found.costs
    assert recall_costs(find_model().digest, 2048) == costs
    assert len(costs.points) > 30
    # Restoring is what all of this is for.
    assert costs.restore_s(2000) < costs.prefill_s(0, 2000) / 10
    assert costs.prefill_s(0, 2000) > 3 * costs.prefill_s(0, 200)
    # Eight answers together take less than eight alone.
    decoding = costs.decoding
    assert 0 < decoding.step_s(8, 1000) < 8 * decoding.step_s(1, 1000)
    assert decoding.join_s(8, 1000) >= 0 <= decoding.leave_s(8, 1000)
    assert costs.error < 0.5  # a busy machine is noisy
    assert found.requests.stop.tolist() == [p.stop for p in costs.points]
    errors = (
        found.requests.estimated_s / found.requests[COLUMNS].sum(axis=1) - 1
    ).abs()
    assert errors.median() < 0.5
    checked = check_costs(
        costs, small_trace(), strategies="none,paged:block=16", progress=False
    )
    assert checked.index.tolist() == ["none", "paged:block=16"]
    assert checked.requests.tolist() == [10, 10]
    assert (checked["median"] < 1.5).all()


def test_the_disk_is_measured_too(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        rate = 1 / measure_load()
        assert not list((tmp_path / "mlxlab").iterdir())
    assert 1 << 20 < rate < 1 << 36


def test_a_time_that_is_up_leaves_the_least_that_can_be_fitted() -> None:
    found = calibrate(tokens=300, seconds=0, progress=False)
    assert len(found.requests) == len(found.costs.points) == LEAST


def test_a_prompt_that_is_too_short_is_refused() -> None:
    with pytest.raises(ModelError, match="255 tokens are too few to calibrate with"):
        calibrate(tokens=255, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sessions", "subagents"])
def test_estimates_are_close_on_recorded_traces(name: str) -> None:
    costs = calibrate(progress=False).costs
    found = check_costs(costs, load_trace(name), strategies="prefix,paged")
    assert (found["median"] <= 0.15).all()
