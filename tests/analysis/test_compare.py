"""Comparisons: requests, summary, bounds, files."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlxlab.analysis.compare import compare
from mlxlab.analysis.comparison import Comparison
from mlxlab.errors import ConfigError, MlxlabError, RuleError, StrategyError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.bounds import BOUNDS, PLACEMENT, UnlimitedMemory
from mlxlab.replay.cost_model import CostModel, Point
from mlxlab.replay.requests import render_trace
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import DEFAULT_SPECS, parse_specs
from mlxlab.strategies import STRATEGIES
from mlxlab.traces import Trace, load_trace
from tests.replay.test_cost_model import fitted
from tests.support.exchanges import small_trace

ROW = [
    "strategy",
    "rules",
    "capacity",
    "session",
    "request",
    "prompt_tokens",
    "reused_tokens",
    "disk_tokens",
    "computed_tokens",
    "prefill_s",
    "ttft_s",
    "restore_s",
    "stored_bytes",
    "evicted",
    "answer_tokens",
    "arrived_s",
    "total_s",
    "unlimited",
    "optimal",
    "position_independent",
    "unlimited_s",
    "optimal_s",
    "position_independent_s",
]


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare(small_trace(), simulate=True, progress=False)


@pytest.fixture(scope="module")
def rows(compared: Comparison) -> pd.DataFrame:
    return compared.requests


def test_every_exact_strategy_sees_every_request(
    rows: pd.DataFrame,
) -> None:
    assert list(rows.columns) == ROW
    counts = rows.groupby(["strategy", "rules"], sort=False).size()
    assert list(counts.index) == [
        ("prefix@none", "none"),
        *((name, "all") for name, strategy in STRATEGIES.items() if strategy.exact),
    ]
    assert set(counts) == {10}


def unlimited_reuse(trace: Trace) -> list[int]:
    """What a replay with unlimited memory reuses."""
    folder = find_model()
    renderer = Renderer(folder, parse_rules("all"))
    replayer = Simulator(UnlimitedMemory(token_bytes=folder.layout.token_bytes()))
    return [
        replayer.replay(request).reused_tokens
        for request in render_trace(trace, renderer)
    ]


def test_no_strategy_beats_unlimited_memory(rows: pd.DataFrame) -> None:
    rows = rows[rows.rules == "all"]
    most = unlimited_reuse(small_trace())
    for _, own in rows.groupby("strategy"):
        assert len(own) == len(most)
        assert (own.reused_tokens <= most).all()


def test_bounds_stand_beside_every_request(
    compared: Comparison, rows: pd.DataFrame
) -> None:
    most = unlimited_reuse(small_trace())
    for _, own in rows.groupby("strategy"):
        assert own.unlimited.tolist() == most
    assert compared.bounds.reused_tokens.iloc[0] == sum(most)
    assert (rows.optimal <= rows.unlimited).all()
    assert (rows.unlimited <= rows.position_independent).all()
    assert (rows.position_independent > rows.unlimited).any()
    own = rows[rows.rules == "all"]
    assert (own.reused_tokens <= own.optimal).all()
    little = compare(
        small_trace(),
        strategies="paged:block=16,capacity=300KiB",
        simulate=True,
        progress=False,
    )
    own = little.requests
    assert (own.optimal < own.unlimited).any()
    shares = little.summary().iloc[0]
    assert shares.of_position_independent < shares.of_unlimited < shares.of_optimal < 1
    assert little.bounds.bound.tolist() == list(BOUNDS)
    unlimited, optimal, _ = little.bounds.memory.tolist()
    assert optimal == 300 << 10 < unlimited
    unlimited, optimal, anywhere = little.bounds.reused.tolist()
    assert optimal < unlimited < anywhere
    assert little.bounds.ttft_median_s.isna().all()


def test_a_model_with_checkpoints_has_the_bound_of_placements() -> None:
    compared = compare(
        small_trace(),
        strategies="paged:share=60,capacity=300KiB",
        simulate=True,
        costs=fitted(),
        layout=f"{find_model().layout.token_bytes() >> 10}KiB+100KiB",
        progress=False,
    )
    own = compared.requests
    assert 0 < own.placement.sum() < own.optimal.sum()
    assert (own.placement_s.notna()).all()
    row = compared.bounds[compared.bounds.bound == PLACEMENT].iloc[0]
    assert (row.memory, row.reused_tokens) == (300 << 10, own.placement.sum())
    shares = compared.summary().iloc[0]
    assert shares.of_placement == pytest.approx(shares.reused / row.reused)
    table, bounds = compared.tables()
    assert "of best\nplacement" in table
    assert "best checkpoints" in bounds.bound.tolist()


def test_a_capacity_is_for_those_that_name_none() -> None:
    settings: dict[str, Any] = {"simulate": True, "progress": False}
    specs = "paged:block=16,prefix:capacity=1MiB"
    given = compare(small_trace(), strategies=specs, capacity=300 << 10, **settings)
    specs = "paged:block=16,capacity=300KiB,prefix:capacity=1MiB"
    named = compare(small_trace(), strategies=specs, **settings)
    own = ["capacity", "reused_tokens", "stored_bytes", "evicted", "optimal"]
    pd.testing.assert_frame_equal(given.requests[own], named.requests[own])
    described = given.manifest["strategies"][0]["parameters"]
    assert described == {"block": 16, "capacity": 300 << 10}


def test_bounds_take_the_seconds_that_their_tokens_take() -> None:
    costs = fitted()
    compared = compare(
        small_trace(), strategies="paged", simulate=True, costs=costs, progress=False
    )
    rows = compared.requests
    pairs = zip(rows.unlimited, rows.prompt_tokens, strict=True)
    assert rows.unlimited_s.tolist() == [costs.ttft_s(*pair) for pair in pairs]
    assert (rows.position_independent_s <= rows.unlimited_s).all()
    assert (rows.unlimited_s <= rows.ttft_s).all()
    for name in BOUNDS:
        own = compared.bounds.set_index("bound").loc[name]
        assert own.ttft_median_s == rows[f"{name}_s"].median()
        assert own.ttft_mean_s == pytest.approx(rows[f"{name}_s"].mean())


def test_a_live_replay_says_how_soon_it_could_have_been(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = fitted()
    points: list[Point] = []

    def fit(measured: Sequence[Point], **_: object) -> CostModel:
        points.extend(measured)
        return costs

    module = import_module("mlxlab.analysis.compare")
    monkeypatch.setattr(module, "fit_costs", fit)
    compared = compare(small_trace(), "none,suffix,paged", progress=False)
    rows = compared.requests
    own = rows[rows.strategy.isin(["none", "paged"])]
    assert [(p.start, p.stop, p.restore_s, p.prefill_s) for p in points] == [
        *zip(
            own.reused_tokens,
            own.prompt_tokens,
            own.restore_s,
            own.prefill_s,
            strict=True,
        )
    ]
    pairs = zip(rows.unlimited, rows.prompt_tokens, strict=True)
    assert rows.unlimited_s.tolist() == [costs.ttft_s(*pair) for pair in pairs]
    assert compared.manifest["estimated"] == costs.describe()


def test_moved_keys_give_no_seconds_of_bounds() -> None:
    settings: dict[str, Any] = {"strategies": "suffix-naive:block=16"}
    compared = compare(small_trace(), progress=False, **settings)
    assert compared.requests.unlimited_s.isna().all()
    assert compared.bounds.ttft_median_s.isna().all()
    assert "TTFT est." not in str(compared.tables()[1].columns)
    costs = fitted()
    rows = compare(small_trace(), costs=costs, progress=False, **settings).requests
    pairs = zip(rows.unlimited, rows.prompt_tokens, strict=True)
    assert rows.unlimited_s.tolist() == [costs.ttft_s(*pair) for pair in pairs]


def test_reused_and_computed_make_the_prompt(rows: pd.DataFrame) -> None:
    assert (rows.reused_tokens + rows.computed_tokens == rows.prompt_tokens).all()
    assert (rows.computed_tokens >= 1).all()


def test_segments_cover_every_prompt(compared: Comparison, rows: pd.DataFrame) -> None:
    tokens = compared.segments.groupby("request").tokens.sum()
    own = rows[rows.strategy == "paged"]
    assert tokens.to_dict() == dict(zip(own.request, own.prompt_tokens, strict=True))
    assert {"tools", "system", "user"} <= set(compared.segments.role)


def test_summary_weighs_by_tokens(compared: Comparison, rows: pd.DataFrame) -> None:
    own = rows.query("strategy == 'paged'")
    summary = compared.summary()
    reused, of_unlimited, new_session = (
        summary[column].to_dict()
        for column in ("reused", "of_unlimited", "new_session")
    )
    assert reused["paged"] == own.reused_tokens.sum() / own.prompt_tokens.sum()
    most = sum(unlimited_reuse(small_trace()))
    assert of_unlimited["paged"] == pytest.approx(own.reused_tokens.sum() / most)
    assert new_session["prefix@none"] < new_session["paged"]
    assert "ttft_median_s" not in summary


def test_json_has_manifest_and_rows(
    compared: Comparison, rows: pd.DataFrame, tmp_path: Path
) -> None:
    compared.to_json(tmp_path / "new" / "out.json")
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert list(written) == [
        "kind",
        "manifest",
        "summary",
        "requests",
        "bounds",
        "segments",
        "types",
    ]
    assert written["kind"] == "compare"
    assert len(written["requests"]) == len(rows)
    assert all(list(row) == ROW for row in written["requests"])
    assert {row["ttft_s"] for row in written["requests"]} == {None}
    manifest = written["manifest"]
    assert manifest["traces"][0]["digest"] == small_trace().digest
    assert manifest["model"]["token_bytes"] == find_model().layout.token_bytes()
    assert manifest["simulated"] is True
    paged = next(c for c in manifest["strategies"] if c["strategy"] == "paged")
    assert paged["parameters"]["block"] > 0
    assert "drop-attribution" in paged["rules"]


def test_live_manifest_tells_device_blas_and_chunk() -> None:
    live = compare(small_trace(), strategies="prefix", chunk=512, progress=False)
    manifest = live.manifest
    assert manifest["chunk"] == 512
    assert manifest["blas"]
    assert manifest["device"]
    assert manifest["simulated"] is False


def test_json_that_cannot_be_written_says_where(
    compared: Comparison, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MlxlabError, match="file"):
        compared.to_json(tmp_path / "file" / "out.json")


def test_several_traces_start_from_empty_caches() -> None:
    both = compare(
        [small_trace("one"), small_trace("two")],
        strategies="paged",
        simulate=True,
        progress=False,
    ).requests
    one, two = (both[both.session.str.startswith(name)] for name in ("one:", "two:"))
    assert one.reused_tokens.tolist() == two.reused_tokens.tolist()


def test_notes_of_all_renderings_add_up() -> None:
    folder = find_model()
    folder.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content | length }}\n{% endfor %}"
    )
    compared = compare(
        small_trace(), model=folder, strategies="prefix@none,paged", simulate=True
    )
    notes = compared.manifest["notes"]
    assert [n for note, n in notes.items() if "coarse" in note] == [20]


def test_bounds_are_no_strategies() -> None:
    for name in ("ceiling", *BOUNDS):
        with pytest.raises(StrategyError, match=f"no strategy '{name}'"):
            compare(small_trace(), ["paged", name], simulate=True, progress=False)


def test_strategies_may_be_a_list_and_traces_a_name() -> None:
    one = compare("thinking", ["prefix@none", "paged"], simulate=True, progress=False)
    assert list(one.summary().index) == ["prefix@none", "paged"]
    other = compare(
        [load_trace("thinking")], "prefix@none,paged", simulate=True, progress=False
    )
    pd.testing.assert_frame_equal(one.requests, other.requests)


def test_a_size_is_written_with_its_unit() -> None:
    settings: dict[str, Any] = {"simulate": True, "progress": False}
    small = compare(small_trace(), "paged:block=16", capacity="300KiB", **settings)
    assert set(small.requests.capacity) == {300 << 10}
    with pytest.raises(ConfigError, match=r"capacity '16': give bytes .* 16GiB"):
        compare(small_trace(), capacity="16", **settings)


def test_reads_specs_with_parameters_and_rules() -> None:
    found = parse_specs(
        "prefix@none, paged:block=32,capacity=1GiB ,block-hash@-environment-first,"
        "none@drop-attribution+inline-system"
    )
    assert [(c.strategy, c.rules_label) for c in found] == [
        ("prefix", "none"),
        ("paged:block=32,capacity=1GiB", "all"),
        ("block-hash", "-environment-first"),
        ("none", "drop-attribution,inline-system"),
    ]


def test_nothing_approximate_is_compared_unless_asked_for() -> None:
    for spec in parse_specs(DEFAULT_SPECS):
        assert spec.make(CacheLayout.plain(1)).exact


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"strategies": "nope"}, StrategyError, "choose from none, prefix"),
        ({"strategies": "paged:size=3"}, StrategyError, "accepted: block, capacity"),
        ({"strategies": "prefix,prefix"}, StrategyError, "named twice"),
        ({"strategies": ""}, StrategyError, "choose from"),
        ({"rules": "nope"}, RuleError, "known: all, none"),
        ({"strategies": "prefix@nope"}, RuleError, "known: all, none"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    options: dict[str, str], error: type[MlxlabError], says: str
) -> None:
    with pytest.raises(error, match=says):
        compare(small_trace(), simulate=True, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere mlx brings its own")
@pytest.mark.parametrize("strategy", ["paged", "mlx-lm"])
def test_a_live_replay_uses_the_fast_blas(strategy: str) -> None:
    script = f"""
from mlxlab import compare
from tests.support.exchanges import small_trace
live = compare(small_trace(), strategies="{strategy}", progress=False)
print(live.manifest["blas"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "OpenBLAS" in done.stdout


def test_simulation_imports_no_mlx() -> None:
    script = """
import sys
from mlxlab import compare
from tests.support.exchanges import small_trace
compare(small_trace(), strategies="prefix,static-prefix,block-hash,paged",
        simulate=True, progress=False)
heavy = {"mlx", "mlx_lm", "fastapi", "IPython"} & set(sys.modules)
sys.exit(f"loaded {sorted(heavy)}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_single_request_can_reuse_nothing() -> None:
    trace = small_trace()
    one = replace(trace, exchanges=trace.exchanges[:1])
    compared = compare(one, "paged", simulate=True, progress=False)
    assert compared.summary().reused.tolist() == [0]
    assert compared.bounds.reused.max() < 0.5  # a prompt may repeat its own content
    assert "paged" in repr(compared)


@pytest.mark.parametrize(
    ("spec", "layout", "says"),
    [
        ("paged:capacity=1MiB", CacheLayout.plain(512, 2 << 20), "holds no checkpoint"),
        ("paged:checkpoints=omlx", CacheLayout.plain(512), "can be cut at any token"),
        ("suffix", CacheLayout.plain(512, 64), "nothing can be moved in this model"),
    ],
)
def test_what_means_nothing_for_a_model_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, spec: str, layout: CacheLayout, says: str
) -> None:
    monkeypatch.setattr(ModelFolder, "layout", layout)
    monkeypatch.setattr("mlxlab.analysis.compare.Renderer", None)
    with pytest.raises(StrategyError, match=says) as caught:
        compare(small_trace(), spec, simulate=True, progress=False)
    assert "\n" not in str(caught.value)
