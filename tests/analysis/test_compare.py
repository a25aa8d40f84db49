"""Comparisons: requests, summary, bounds, files."""

import contextlib
import io
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
from rich.console import Console

from mlxlab.analysis.compare import compare
from mlxlab.analysis.comparison import Comparison
from mlxlab.analysis.forecast import forecast
from mlxlab.analysis.tables import lay_out
from mlxlab.cli import main
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
from mlxlab.replay.turns import Schedule, list_turns, think_only
from mlxlab.replay.workload import Workload, open_sources
from mlxlab.strategies import STRATEGIES, parse_strategy
from mlxlab.traces import Exchange, Trace, load_trace
from mlxlab.traces.schema import Order
from mlxlab.traces.writer import write_trace
from tests.replay.test_cost_model import fitted
from tests.support.exchanges import small_trace, small_traces

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
        "{% for m in messages %}{{ m.content | length }}\n{% endfor %}>"
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


THREE = small_traces("one", "two", "three")
COUNTED = ["reused_tokens", "stored_bytes", "evicted"]


@pytest.fixture(scope="module")
def at_once() -> Comparison:
    return compare(
        THREE, "prefix@none,paged:block=16", users=3, think_times=0, progress=False
    )


def test_simulated_users_share_one_cache() -> None:
    settings: dict[str, Any] = {"capacity": "600KiB", "progress": False}
    specs = "prefix@none,paged:block=16"
    shared = compare(THREE, specs, simulate=True, users=3, **settings)
    renderer = Renderer(find_model(), parse_rules("all"))
    workload = Workload(open_sources(THREE, renderer, progress=False), 3)
    strategy = parse_strategy(
        "paged:block=16,capacity=600KiB", layout=find_model().layout
    )
    simulator = Simulator(strategy)
    merged = {
        (own.session, own.id): simulator.replay(own).reused_tokens for own in workload
    }
    paged = shared.requests.query("strategy == 'paged:block=16'")
    pairs = zip(paged.session, paged.request, strict=True)
    assert paged.reused_tokens.tolist() == [merged[pair] for pair in pairs]
    one = compare(THREE, specs, simulate=True, users=1, **settings).requests
    apart = compare(THREE, specs, simulate=True, **settings).requests
    keys = ["strategy", "session", "request", "prompt_tokens"]
    for other in (one, apart):
        assert shared.requests[keys].equals(other[keys])
        assert not shared.requests.reused_tokens.equals(other.reused_tokens)
    # All but the very first session can reuse something.
    first = shared.summary().new_session["paged:block=16"]
    starts = paged.groupby("session").head(1).iloc[1:]
    assert first == starts.reused_tokens.sum() / starts.prompt_tokens.sum()
    assert shared.title.endswith("simulated; users: 3, one cache")


@pytest.mark.parametrize("users", [None, 1])
def test_what_was_never_planned_has_no_row(users: int | None) -> None:
    trace = small_trace()
    planned = [own for own in trace.exchanges if own.id != 1]
    numbered = [_ordered(own, i) for i, own in enumerate(planned)]
    refused = (numbered[0], trace.exchanges[1], *numbered[1:])
    settings: dict[str, Any] = {"users": users, "simulate": True, "progress": False}
    found = compare(replace(trace, exchanges=refused), "paged", **settings)
    least = compare(replace(trace, exchanges=tuple(planned)), "paged", **settings)
    assert found.requests.request.tolist() == [own.id for own in planned]
    columns = ["prompt_tokens", "reused_tokens", "unlimited", "position_independent"]
    assert found.requests[columns].equals(least.requests[columns])
    assert found.bounds.equals(least.bounds)


def _ordered(exchange: Exchange, number: int) -> Exchange:
    """Return an exchange that was stored as a whole before the next was planned."""
    assert exchange.response is not None
    order = Order(planned=2 * number, stored=((2 * number + 1, 10**6),))
    return replace(exchange, response=replace(exchange.response, order=order))


def test_live_users_ask_at_once(at_once: Comparison) -> None:
    rows = at_once.requests
    simulated = compare(
        THREE, "prefix@none,paged:block=16", users=3, simulate=True, progress=False
    ).requests
    keys = ["strategy", "session", "request", "prompt_tokens", "answer_tokens"]
    assert rows[keys].equals(simulated[keys])
    assert list(rows) == list(simulated)
    assert simulated.total_s.isna().all()
    assert (rows.ttft_s < rows.total_s).all()
    for _, own in rows.groupby("strategy"):
        starts = own.arrived_s.sort_values()
        assert starts.iloc[:3].tolist() == [0, 0, 0]
        ends = own.arrived_s + own.total_s
        assert (starts.iloc[3:] > 0).all()
        assert sum(own.total_s) > 1.5 * ends.max()
    # Bounds follow the order in which the strategy planned the requests.
    own = rows[rows.strategy == "paged:block=16"]
    assert (own.reused_tokens <= own.unlimited).all()


def test_live_users_are_summed_up(at_once: Comparison) -> None:
    own = at_once.requests.query("strategy == 'paged:block=16'")
    summary = at_once.summary().loc["paged:block=16"]
    last = (own.arrived_s + own.total_s).max()
    assert summary.tokens_per_s == pytest.approx(own.answer_tokens.sum() / last)
    assert summary.total_median_s == own.total_s.median()
    assert at_once.title.endswith("; users: 3, one cache, think times by 0")
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(lay_out(at_once.tables()[0], 80))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "tokens/s" in shown
    assert " paged:block=16 " in shown
    assert at_once.manifest["users"] == 3
    assert at_once.manifest["think_times"] == 0


def test_one_live_user_asks_as_it_was_recorded() -> None:
    # Nothing overlaps: answers are short, and the sub-agent waits for the main loop.
    first = small_trace()
    one = replace(first, exchanges=first.exchanges[:3])
    settings: dict[str, Any] = {"users": 1, "progress": False}
    live = compare(one, "paged:block=16", think_times=0.1, **settings)
    simulated = compare(one, "paged:block=16", simulate=True, **settings)
    assert live.requests[COUNTED].equals(simulated.requests[COUNTED])
    pauses = live.requests.arrived_s.diff().iloc[1:]
    assert (pauses.to_numpy() >= live.requests.total_s.iloc[:-1].to_numpy()).all()
    assert (pauses >= 0.05).all()  # a tenth of half a second


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"users": 0}, "users 0: give a whole number >= 1"),
        ({"users": 2, "think_times": -1}, "think times -1: give a factor >= 0"),
        ({"users": 2, "think_times": float("inf")}, "think times inf: give a factor"),
        ({"users": 2, "think_times": float("nan")}, "think times nan: give a factor"),
        ({"think_times": 1}, "think times: only live users think; name users"),
        (
            {"users": 2, "think_times": 1, "simulate": True},
            "think times: only live users think; name users, and do not simulate",
        ),
    ],
)
def test_users_who_mean_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr("mlxlab.analysis.compare.Renderer", None)
    with pytest.raises(ConfigError, match=says):
        compare(small_trace(), "paged", progress=False, **options)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--users 0", "mlxlab compare: Invalid value for '--users'"),
        ("--users x", "mlxlab compare: Invalid value for '--users'"),
        ("--users 2 --think-times -1", "Invalid value for '--think-times'"),
        ("--users 2 --think-times inf", "mlxlab: think times inf: give a factor"),
        ("--think-times 1", "mlxlab: think times: only live users think"),
        ("--users 2 --think-times 1 --simulate", "mlxlab: think times: only live"),
    ],
)
def test_bad_users_are_one_line(
    line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mlxlab", "compare", "thinking", *line.split()])
        with pytest.raises(SystemExit) as end:
            main()
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out == ""
    (error,) = said.err.splitlines()
    assert says in error


def command(line: str) -> None:
    """Run a command that ends as it should."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mlxlab", *line.split()])
        with contextlib.suppress(SystemExit):
            main()


def test_the_command_takes_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / f"{trace.name}.jsonl") for trace in THREE[:2]]
    for trace, path in zip(THREE, paths, strict=False):
        write_trace(replace(trace, exchanges=trace.exchanges[:3]), path)
    line = f"compare {' '.join(paths)} --strategies paged --users 2 --json -"
    command(f"{line} --think-times 0")
    said = capsys.readouterr()
    assert "This takes about" in said.err
    live = json.loads(said.out)["requests"]
    command(f"{line} --simulate")
    simulated = json.loads(capsys.readouterr().out)["requests"]
    assert [list(row) for row in live] == [list(row) for row in simulated]
    assert all(row["total_s"] > row["ttft_s"] > 0 for row in live)


def test_a_forecast_counts_thinking_and_answers() -> None:
    settings: dict[str, Any] = {"model": find_model(), "strategies": "none,paged"}
    slow = fitted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxlab.analysis.forecast.recall_costs", lambda *_: slow)
        patch.setattr("mlxlab.analysis.forecast.format_duration", "{:.4f}".format)
        asked: list[dict[str, Any]] = [
            {},
            {"users": 1, "think_times": 0},
            {"users": 1},
            {"users": 1, "think_times": 2},
        ]
        said = [forecast([small_trace()], **settings, **own) for own in asked]
    # As in "about 0.25, by this machine's calibration".
    forecasts = [float(own.split()[1].rstrip(",")) for own in said]
    alone, answered, thought, twice = forecasts
    assert alone < answered
    think_s = think_only(Schedule(list_turns([small_trace()]), 1))
    assert think_s > 1
    assert thought - answered == pytest.approx(2 * think_s, abs=0.01)
    assert twice - answered == pytest.approx(4 * think_s, abs=0.01)
