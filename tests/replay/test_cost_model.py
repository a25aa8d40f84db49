from __future__ import annotations

import random
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from mlxlab import compare, find_model
from mlxlab.analysis.calibration import Calibration
from mlxlab.errors import ConfigError
from mlxlab.replay.cost_model import (
    CostModel,
    Machine,
    Point,
    fit_costs,
    latest_costs,
    recall_costs,
    remember_costs,
)
from mlxlab.replay.decoding_costs import Decoding, Step
from mlxlab.strategies import Plan, Span
from tests.support.exchanges import small_trace

CHUNK = 1000


def truth(start: int, stop: int) -> tuple[float, float]:
    """Seconds of a machine that is made up: restore and prefill."""
    starts = np.arange(start, stop - 1, CHUNK)
    lengths = np.minimum(starts + CHUNK, stop - 1) - starts
    pairs = 4e-8 * (starts @ lengths) + 5e-8 * (lengths @ lengths)
    prefill = 2e-3 + 1e-3 * len(starts) + 3e-5 * (stop - start) + float(pairs)
    return (1e-4 + 2e-7 * start if start else 0.0), prefill


def fitted(
    noise: float = 0.0, spikes: int = 0, machine: Machine | None = None
) -> CostModel:
    order = random.Random(0)
    points = []
    for start in (0, 1000, 4000, 16000):
        for length in (1, 16, 64, 256, 1024, 4096):
            for _ in range(4):
                factor = 1 + order.uniform(-noise, noise) / 2
                restore, prefill = truth(start, start + length)
                points.append(
                    Point(
                        start=start,
                        stop=start + length,
                        restore_s=restore * factor,
                        prefill_s=prefill * factor,
                    )
                )
    for i in order.sample(range(len(points)), spikes):
        slow = {"prefill_s": points[i].prefill_s * order.uniform(3, 10)}
        points[i] = points[i].model_copy(update=slow)
    return fit_costs(
        points,
        model="digest",
        machine=machine or Machine.here(CHUNK),
        device="d",
        blas="b",
        day=date(2026, 1, 2),
    )


@pytest.mark.parametrize(("noise", "spikes", "off"), [(0, 0, 1e-6), (0.2, 15, 0.1)])
def test_a_machine_is_found_out_by_its_points(
    noise: float, spikes: int, off: float
) -> None:
    costs = fitted(noise, spikes)
    shares = []
    for start in (0, 500, 9000):
        for stop in (start + 1, start + 300, start + 2000, start + 7000):
            restore, prefill = truth(start, stop)
            assert costs.restore_s(start) == pytest.approx(restore, rel=0.15)
            shares.append(abs(costs.prefill_s(start, stop) / prefill - 1))
    assert np.median(shares) <= off
    assert max(shares) < 4 * off
    assert all(term >= 0 for term in (*costs.prefill, *costs.restore))


def test_nothing_costs_nothing() -> None:
    costs = fitted()
    assert costs.restore_s(0) == 0
    assert costs.prefill_s(7, 7) == 0


def test_a_plan_costs_what_it_restores_and_computes() -> None:
    costs = fitted()
    plan = Plan(5000, (Span(1, 0, 0, 3000),), 3000)
    assert costs.estimate(plan, 1, 5000) == (
        costs.restore_s(3000),
        costs.prefill_s(3000, 5000),
    )
    # Two units of 64 of which the second is not full.
    units = Plan(2, (Span(1, 0, 0, 1),), 1)
    assert costs.estimate(units, 64, 100)[1] == costs.prefill_s(64, 100)


def test_what_is_moved_leaves_the_rest_to_compute() -> None:
    costs = fitted()
    spans = (Span(1, 0, 0, 1000), Span(1, 1100, 1200, 3000, origin=1100))
    plan = Plan(5000, spans, 4000)
    restore, prefill = costs.estimate(plan, 1, 5000)
    assert restore == costs.restore_s(4000)
    assert costs.prefill_s(0, 1000) < prefill < costs.prefill_s(4000, 5000)
    again = Plan(5000, spans, 4000, recompute=3000)
    assert costs.estimate(again, 1, 5000)[1] > 2 * prefill


def test_a_calibration_is_kept_for_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert recall_costs("digest", CHUNK) is None
    here = fitted()
    elsewhere = Machine.here(CHUNK).model_copy(update={"processor": "M9"})
    remember_costs(fitted(machine=elsewhere))
    assert recall_costs("digest", CHUNK) is None
    path = remember_costs(here)
    assert recall_costs("digest", CHUNK) == here
    assert recall_costs("digest", CHUNK + 1) is None
    assert latest_costs(CHUNK, without="another") == here
    assert latest_costs(CHUNK, without="digest") is None
    assert latest_costs(CHUNK + 1, without="another") is None
    assert recall_costs("other", CHUNK) is None
    newer = fitted(noise=0.1)
    assert remember_costs(newer) == path
    assert recall_costs("digest", CHUNK) == newer


def fewer(costs: CostModel, points: int = 17) -> CostModel:
    return costs.model_copy(update={"points": costs.points[:points]})


def test_a_calibration_with_more_points_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = fitted()
    remember_costs(good)
    assert not caplog.messages
    remember_costs(fewer(good))
    assert recall_costs("digest", CHUNK) == good
    (line,) = caplog.messages
    assert "17 points, that of 2026-01-02 has 96 and stays" in line
    assert "--force" in line
    remember_costs(fewer(good), force=True)
    assert recall_costs("digest", CHUNK) == fewer(good)
    remember_costs(good)
    assert recall_costs("digest", CHUNK) == good


@pytest.mark.parametrize("key", ["device", "blas"])
def test_more_points_of_another_device_or_blas_do_not_stay(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember_costs(fitted())
    few = fewer(fitted()).model_copy(update={key: "another"})
    remember_costs(few)
    assert recall_costs("digest", CHUNK) == few


def test_more_points_of_another_machine_or_chunk_are_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = fitted(machine=Machine.here(CHUNK + 1))
    remember_costs(other)
    few = fewer(fitted())
    remember_costs(few)
    assert recall_costs("digest", CHUNK) == few
    assert recall_costs("digest", CHUNK + 1) == other


def test_a_calibration_that_others_may_have_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = remember_costs(fitted())
    assert {f.stat().st_mode & 0o777 for f in (path.parent, path.parent.parent)} == {
        0o700
    }
    path.chmod(0o620)
    assert recall_costs("digest", CHUNK) is None
    (line,) = caplog.messages
    assert line == f"{path}: others may write it; calibrate again"
    remember_costs(fitted())
    assert recall_costs("digest", CHUNK) == fitted()


def test_a_damaged_calibration_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember_costs(fitted()).write_text('{"calibrations": [{}]}')
    assert recall_costs("digest", CHUNK) is None
    assert "calibration" in caplog.text


def test_a_simulation_tells_seconds() -> None:
    costs = fitted()
    plain, timed = (
        compare(
            small_trace(),
            strategies="none,paged",
            simulate=True,
            costs=given,
            progress=False,
        )
        for given in (None, costs)
    )
    assert plain.requests.ttft_s.isna().all()
    assert "estimated" not in plain.manifest
    rows = timed.requests
    assert (rows.ttft_s == rows.restore_s + rows.prefill_s).all()
    none = rows[rows.strategy == "none"]
    assert (none.restore_s == 0).all()
    expected = [costs.prefill_s(0, tokens) for tokens in none.prompt_tokens]
    assert none.prefill_s.tolist() == pytest.approx(expected)
    assert timed.manifest["estimated"]["calibrated"] == "2026-01-02"
    assert "TTFT\nest. s" in timed.tables()[0]
    assert any("96 points of 2026-01-02" in note for note in timed.notes)


def test_costs_are_shown_as_far_as_they_were_measured() -> None:
    environment = {"device": "d", "blas": "b", "chunk": CHUNK}
    shown = Calibration.of(fitted(), find_model(), environment).tables()[0]
    assert shown["cached\ntokens"].tolist() == ["0", "4,096", "8,192", "16,384"]


def test_a_machine_has_a_name() -> None:
    here = Machine.here(64)
    assert here.processor not in {"", "unknown"}
    assert here == Machine.here(64)
    assert find_model().digest


def decoding(rows: int, longest: int) -> Step:
    """A made-up machine's seconds of decoding."""
    front = 2e-6 * longest if rows == 1 else 3e-6 * rows * longest
    step = Step(rows=rows, longest=longest, step_s=0.02 + 0.003 * rows + front)
    if rows == 1:
        return step
    alone = decoding(1, longest).step_s
    padded = rows * longest
    change = {"join_s": alone + 0.01 + 1e-6 * padded, "leave_s": 0.002 + 5e-7 * padded}
    return step.model_copy(update=change)


def test_steps_and_changes_of_a_batch_cost_by_what_is_padded() -> None:
    sizes = [(n, longest) for n in (1, 2, 4, 8) for longest in (300, 5000)]
    steps = [decoding(*size) for size in sizes]
    slow = steps[0].model_copy(update={"step_s": 9.0})
    found = Decoding.of([slow, *steps, *steps])
    for rows, longest in ((1, 2000), (3, 2000), (8, 9000)):
        wanted = decoding(rows, longest)
        assert found.step_s(rows, longest) == pytest.approx(wanted.step_s, rel=1e-3)
        grown = found.step_s(rows, longest + 1) - found.step_s(rows, longest)
        assert found.growth_s(rows) == pytest.approx(grown)
        if wanted.join_s is not None:
            join = found.step_s(1, longest) + found.join_s(rows, longest)
            assert join == pytest.approx(wanted.join_s, rel=1e-3)
            leave = found.leave_s(rows, longest)
            assert leave == pytest.approx(wanted.leave_s, rel=1e-3)


def test_a_model_that_decodes_one_by_one_takes_a_step_for_each() -> None:
    found = Decoding.of([decoding(1, longest) for longest in (300, 5000)])
    alone = decoding(1, 2000).step_s
    assert found.step_s(1, 2000) == pytest.approx(alone, rel=1e-3)
    assert found.step_s(3, 2000) == pytest.approx(3 * alone, rel=1e-3)
    assert found.join_s(3, 2000) == found.leave_s(3, 2000) == 0


def test_an_old_calibration_keeps_all_but_its_decoding() -> None:
    costs = fitted()
    new = costs.model_copy(update={"decode": Decoding.of([decoding(1, 300)])})
    assert CostModel.model_validate(new.model_dump(mode="json")) == new
    old = {
        **costs.model_dump(mode="json"),
        "decode": [1.0, 0.5, 0.0],
        "steps": [{"rows": 1, "context": 300, "step_s": 1.5}],
    }
    assert CostModel.model_validate(old) == costs
    with pytest.raises(ConfigError, match="mlxlab calibrate --force"):
        _ = costs.decoding
