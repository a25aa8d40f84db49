"""A sweep gives the same wherever it runs, goes on where it stopped, and is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from distributed import LocalCluster

from mlxlab import compare
from mlxlab.analysis import jobs
from mlxlab.analysis.jobs import HERE, Row, Task, run_tasks
from mlxlab.analysis.sweep import Sweep, sweep
from mlxlab.errors import MlxlabError, StrategyError, TraceError
from mlxlab.models.folder import find_model
from mlxlab.models.layout import CacheLayout
from mlxlab.replay.bounds import BOUNDS, PLACEMENT
from mlxlab.replay.export import export_trace
from mlxlab.traces.hashed.weka import Weka
from tests.replay.test_cost_model import fitted
from tests.support.exchanges import small_trace
from tests.support.hashes import weka_session, write_weka

SMALL = 40 << 10  # bytes; some eighty tokens of the bundled model
QUICK: dict[str, Any] = {"scheduler": HERE, "progress": False}


def test_totals_are_those_of_single_requests() -> None:
    specs = "none,prefix,paged:block=16,mlx-lm,prefix@none"
    swept = sweep(small_trace(), strategies=specs, **QUICK)
    compared = compare(small_trace(), strategies=specs, simulate=True, progress=False)
    rows = compared.requests.groupby(["strategy", "rules"])
    assert len(swept.requests) == 5
    for found in swept.requests.itertuples():
        own = rows.get_group((found.strategy, found.rules))
        assert found.requests == len(own) == 10
        assert found.prompt_tokens == own.prompt_tokens.sum()
        assert found.reused_tokens == own.reused_tokens.sum()
        assert found.evicted == own.evicted.sum()
        assert found.stored_bytes == own.stored_bytes.max()
    bounds = swept.bounds.drop(columns="users")
    pd.testing.assert_frame_equal(
        bounds, compared.bounds, check_dtype=False, rtol=1e-12
    )
    (unlimited,) = swept.bounds[swept.bounds.bound == "unlimited"].itertuples()
    own = compared.requests[compared.requests.strategy == "paged:block=16"]
    assert unlimited.reused_tokens == own.unlimited.sum()
    assert unlimited.prompt_tokens == own.prompt_tokens.sum()


def test_seconds_are_those_of_single_requests() -> None:
    costs = fitted()
    specs = "none,paged:block=16"
    swept = sweep(small_trace(), strategies=specs, costs=costs, **QUICK)
    rows = compare(
        small_trace(), strategies=specs, simulate=True, costs=costs, progress=False
    ).requests.groupby("strategy")
    bounds = swept.bounds.set_index("bound")
    for found in swept.requests.itertuples():
        own = rows.get_group(found.strategy)
        assert found.ttft_s == pytest.approx(own.ttft_s.sum())
        for name in BOUNDS:
            seconds = own[f"{name}_s"]
            assert bounds.ttft_mean_s[name] == pytest.approx(seconds.mean())
            assert bounds.ttft_median_s[name] == pytest.approx(seconds.median())
    text = swept.tables()[1]
    assert text["TTFT est.\nmean s"].iloc[0] == f"{own.unlimited_s.mean():.2f}"


def test_a_model_with_checkpoints_has_the_bound_of_placements(tmp_path: Path) -> None:
    sizes = [SMALL * 8, SMALL * 64]
    asked = QUICK | {"capacities": sizes, "folder": tmp_path}
    plain = sweep(small_trace(), "paged:block=1", **asked)
    layout = CacheLayout.plain(find_model().layout.token_bytes(), SMALL)
    swept = sweep(small_trace(), "paged", layout=layout, **asked)
    assert "of_placement" not in plain.summary()
    own = swept.bounds[swept.bounds.bound == PLACEMENT].set_index("memory").reused
    assert list(own.index) == sizes
    rows = swept.summary()
    assert rows.of_placement.tolist() == pytest.approx((rows.reused / [*own]).tolist())
    assert "checkpoint_bytes" not in plain.summary()
    held = rows.checkpoint_bytes
    assert (held % SMALL == 0).all()
    assert (held > 0).all()
    assert (held <= rows.capacity * 33 // 100).all()
    assert (rows.stored_bytes > held).all()
    pd.testing.assert_frame_equal(
        swept.bounds[swept.bounds.bound != PLACEMENT].reset_index(drop=True),
        plain.bounds,
    )
    lines = {line.get_label() for line in swept.plot().axes[0].lines}
    assert {"optimal", PLACEMENT, "unlimited"} <= lines
    assert PLACEMENT not in {line.get_label() for line in plain.plot().axes[0].lines}


def test_capacities_and_users_make_a_difference() -> None:
    traces = [small_trace("a"), small_trace("b")]
    swept = sweep(
        traces,
        strategies="paged:block=16",
        capacities=[SMALL * 8, SMALL * 64],
        users=[1, 2],
        **QUICK,
    )
    frame = swept.requests
    assert frame.capacity.tolist() == [SMALL * 8, SMALL * 64] * 2
    assert frame.users.tolist() == [1, 1, 2, 2]
    small, large = frame.reused_tokens[frame.users == 2]
    assert small < large
    assert (frame.stored_bytes <= frame.capacity).all()
    for users in (1, 2):
        bounds = swept.bounds[swept.bounds.users == users].set_index("bound")
        optimal = bounds.loc["optimal"].reused_tokens
        own = frame.reused_tokens[frame.users == users]
        assert (own.to_numpy() <= optimal.to_numpy()).all()
        assert (optimal <= bounds.reused_tokens["unlimited"]).all()
        assert (
            bounds.reused_tokens["unlimited"]
            <= bounds.reused_tokens["position_independent"]
        )
    shares = swept.summary()
    assert (shares.of_optimal <= 1).all()
    assert (shares.of_position_independent <= shares.of_unlimited).all()
    assert (shares.of_unlimited <= shares.of_optimal).all()


def test_an_exported_trace_is_reused_like_the_recorded_one(tmp_path: Path) -> None:
    trace = small_trace()
    hashed = export_trace(trace, tmp_path / "h.jsonl.gz", progress=False)
    specs = "none,block-hash:block=64,minimum=64,paged"
    capacities = [200 << 10, 4 << 30]
    swept = [
        sweep(t, strategies=specs, capacities=capacities, **QUICK)
        for t in (trace, hashed)
    ]
    frames = [own.requests for own in swept]
    same = ["strategy", "requests", "prompt_tokens", "reused_tokens", "evicted"]
    pd.testing.assert_frame_equal(frames[0][same], frames[1][same])
    assert (frames[1].evicted > 0).any()
    # Content that moved shows in both; pieces of it are found less than runs.
    recorded, hashes = (
        own.bounds.drop_duplicates("bound").set_index("bound").reused_tokens
        for own in swept
    )
    assert recorded.position_independent >= hashes.position_independent
    assert hashes.position_independent > hashes.unlimited


def test_hashes_hold_no_text_and_no_names(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    export_trace(small_trace(), path, progress=False)
    text = path.read_text()
    assert "aaaaaaaa" not in text
    assert "Bash" not in text
    assert '"role":"tools"' in text


@pytest.fixture
def hashed(tmp_path: Path) -> list[Any]:
    return [Weka().open(write_weka(tmp_path / f"{i}.json.gz")) for i in range(3)]


def assert_same(one: Sweep, other: Sweep) -> None:
    pd.testing.assert_frame_equal(one.requests, other.requests)
    pd.testing.assert_frame_equal(one.bounds, other.bounds)


def test_a_sweep_is_the_same_on_a_cluster(hashed: list[Any]) -> None:
    settings: dict[str, Any] = {
        "strategies": "prefix,paged",
        "capacities": [1 << 16, 1 << 30],
        "users": [1, 3],
        "layout": "1KiB",
        "progress": False,
    }
    here = sweep(hashed, scheduler=HERE, **settings)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as others:
        there = sweep(hashed, scheduler=others.scheduler_address, **settings)
    assert_same(here, there)


@pytest.mark.slow
def test_a_sweep_is_the_same_in_processes_of_its_own(hashed: list[Any]) -> None:
    here = sweep(hashed, **QUICK)
    assert_same(here, sweep(hashed, progress=False))


def test_a_stopped_sweep_goes_on(
    hashed: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweep(hashed, **QUICK)
    folder = tmp_path / "kept"
    keep = jobs._keep

    def stop(folder: Path | None, task: Task, rows: list[Row]) -> None:
        keep(folder, task, rows)
        if folder and len(list(folder.iterdir())) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep(hashed, folder=folder, **QUICK)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(kept) == 3
    monkeypatch.setattr(jobs, "_keep", keep)
    assert_same(sweep(hashed, folder=folder, **QUICK), whole)
    now = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(now) == 7
    assert kept.items() <= now.items()


def test_damaged_results_are_found_out_again(tmp_path: Path) -> None:
    task = Task({"a": 1}, "x")
    calls: list[Any] = []

    def run(task: Task, data: Any) -> list[Row]:
        calls.append(data)
        return [{"found": 7, "name": "n", "none": None}]

    settings: dict[str, Any] = {"folder": tmp_path, **QUICK}
    first = run_tasks(run, [task], {"x": 5}, **settings)
    assert run_tasks(run, [task], {"x": 5}, **settings) == first
    assert calls == [5]
    (tmp_path / f"{task.digest}.parquet").write_bytes(b"PAR1")
    assert run_tasks(run, [task], {"x": 5}, **settings) == first
    assert calls == [5, 5]


def test_other_traces_are_other_results(tmp_path: Path) -> None:
    session = weka_session()
    one = Weka().open(write_weka(tmp_path / "one.json", session))
    session["requests"].pop()
    other = Weka().open(write_weka(tmp_path / "other.json", session))
    folder = tmp_path / "kept"
    tokens = [
        sweep(
            trace, strategies="none", folder=folder, **QUICK
        ).requests.prompt_tokens.sum()
        for trace in (one, other)
    ]
    assert tokens[0] - tokens[1] == 200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strategies": "suffix"}, "suffix: nothing can be moved in a hashed trace"),
        ({"strategies": "paged:block=32"}, "paged: block=32 is not in units of 64"),
        ({"strategies": "lru"}, "no strategy 'lru'"),
        ({"capacities": [1]}, "paged: capacity=1 holds no block"),
    ],
)
def test_bad_settings_are_refused(
    settings: dict[str, Any], says: str, hashed: list[Any]
) -> None:
    with pytest.raises(StrategyError, match=says):
        sweep(hashed, **QUICK | settings)


def test_recorded_and_hashed_traces_do_not_mix(hashed: list[Any]) -> None:
    with pytest.raises(TraceError, match="units of tokens: 1, 64"):
        sweep([small_trace(), *hashed], **QUICK)


def test_a_cluster_that_is_not_there_is_named(hashed: list[Any]) -> None:
    with pytest.raises(MlxlabError, match=r"scheduler nowhere:1: .*give the address"):
        sweep(hashed, scheduler="nowhere:1", progress=False)


def test_a_sweep_fits_a_terminal(hashed: list[Any]) -> None:
    swept = sweep(hashed, capacities=[1 << 20, 1 << 30], **QUICK)
    text, possible = swept.tables()
    assert "users" not in text
    assert "of any\nposition" not in text  # hashes do not tell
    assert text.strategy.tolist().count("none") == 1
    assert text.strategy.tolist().count("paged") == 2
    assert list(possible.bound) == [
        "exact, unlimited memory",
        "exact, optimal eviction",
    ]
    assert list(possible.memory) == ["3MiB", "1MiB"]  # 1GiB holds everything
    assert swept.title == "0, 1, 2: 15 requests, 3,348 tokens of 1536, simulated"


@pytest.mark.parametrize(
    ("spec", "layout", "says"),
    [
        ("paged", "24KiB+2MiB", "holds no checkpoint of 2MiB"),
        ("paged:checkpoints=omlx", "24KiB", "this model can be cut at any token"),
        ("suffix", "24KiB+2KiB", "nothing can be moved in this model"),
    ],
)
def test_what_means_nothing_for_a_layout_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, spec: str, layout: str, says: str
) -> None:
    monkeypatch.setattr("mlxlab.analysis.sweep.open_sources", None)
    with pytest.raises(StrategyError, match=says) as caught:
        sweep("sessions", spec, capacities=["1MiB"], layout=layout, progress=False)
    assert "\n" not in str(caught.value)


def test_a_disk_serves_hashed_traces(hashed: list[Any]) -> None:
    settings: dict[str, Any] = {"layout": "1KiB", "progress": False, "scheduler": HERE}
    rows = sweep(
        hashed, "prefix:capacity=1,disk=64MiB,paged", users=[1, 3], **settings
    ).requests
    disk, memory = rows[rows.strategy != "paged"], rows[rows.strategy == "paged"]
    assert disk.disk_tokens.tolist() == disk.reused_tokens.tolist()
    assert (disk.disk_tokens > 0).all()
    assert (memory.disk_tokens == 0).all()
    # Less than 64 tokens are not worth a file.
    assert (disk.reused_tokens.to_numpy() <= memory.reused_tokens.to_numpy()).all()
