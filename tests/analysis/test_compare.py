"""Comparisons: rows, summary, ceiling, files."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlxlab.analysis.compare import compare
from mlxlab.analysis.segments import count_segments
from mlxlab.analysis.tables import list_ceilings, summarize, write_json
from mlxlab.errors import MlxlabError, RuleError, StrategyError
from mlxlab.models.folder import find_model
from mlxlab.replay.cost_model import CostModel, Point
from mlxlab.replay.specs import DEFAULT_SPECS, parse_specs
from mlxlab.strategies import STRATEGIES
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
    "computed_tokens",
    "prefill_s",
    "ttft_s",
    "restore_s",
    "stored_bytes",
    "evicted",
    "infinite",
    "finite",
    "any_position",
    "infinite_s",
    "finite_s",
    "any_position_s",
]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return compare(small_trace(), simulate=True, progress=False)


def test_every_exact_strategy_and_the_ceiling_see_every_request(
    rows: pd.DataFrame,
) -> None:
    assert list(rows.columns) == ROW
    counts = rows.groupby(["strategy", "rules"], sort=False).size()
    assert list(counts.index) == [
        ("prefix", "none"),
        *((name, "all") for name, strategy in STRATEGIES.items() if strategy.exact),
        ("ceiling", "all"),
    ]
    assert set(counts) == {10}


def test_no_strategy_beats_the_ceiling(rows: pd.DataFrame) -> None:
    rows = rows[rows.rules == "all"]
    ceiling = rows[rows.strategy == "ceiling"].set_index("request").reused_tokens
    for _, own in rows.groupby("strategy"):
        assert (own.set_index("request").reused_tokens <= ceiling).all()


def test_ceilings_stand_beside_every_request(rows: pd.DataFrame) -> None:
    ceiling = rows[rows.strategy == "ceiling"]
    assert (ceiling.infinite == ceiling.reused_tokens).all()
    assert (rows.finite <= rows.infinite).all()
    assert (rows.infinite <= rows.any_position).all()
    assert (rows.any_position > rows.infinite).any()
    own = rows[rows.rules == "all"]
    assert (own.reused_tokens <= own.finite).all()
    little = compare(
        small_trace(),
        strategies="paged:block=16,capacity=300KiB",
        simulate=True,
        progress=False,
    )
    own = little[little.strategy != "ceiling"]
    assert (own.finite < own.infinite).any()
    shares = summarize(little).iloc[0]
    assert shares.of_any_position < shares.of_infinite < shares.of_finite < 1
    possible = list_ceilings(little)
    infinite, finite, _ = possible.capacity.tolist()
    assert finite == 300 << 10 < infinite
    infinite, finite, anywhere = possible.reused.tolist()
    assert finite < infinite < anywhere
    assert possible.median_s.isna().all()


def test_a_capacity_is_for_those_that_name_none() -> None:
    settings: dict[str, Any] = {"simulate": True, "progress": False}
    specs = "paged:block=16,prefix:capacity=1MiB"
    given = compare(small_trace(), strategies=specs, capacity=300 << 10, **settings)
    specs = "paged:block=16,capacity=300KiB,prefix:capacity=1MiB"
    named = compare(small_trace(), strategies=specs, **settings)
    own = ["capacity", "reused_tokens", "stored_bytes", "evicted", "finite"]
    rest = given.strategy != "ceiling"
    pd.testing.assert_frame_equal(given[own][rest], named[own][rest])
    described = given.attrs["manifest"]["strategies"][0]["parameters"]
    assert described == {"block": 16, "capacity": 300 << 10}


def test_ceilings_take_the_seconds_that_their_tokens_take() -> None:
    costs = fitted()
    rows = compare(
        small_trace(), strategies="paged", simulate=True, costs=costs, progress=False
    )
    pairs = zip(rows.infinite, rows.prompt_tokens, strict=True)
    assert rows.infinite_s.tolist() == [costs.ttft_s(*pair) for pair in pairs]
    assert (rows.any_position_s <= rows.infinite_s).all()
    assert (rows.infinite_s <= rows.ttft_s).all()
    possible = list_ceilings(rows)
    assert possible.median_s.tolist() == [
        rows.infinite_s.median(),
        rows.any_position_s.median(),
    ]


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
    rows = compare(small_trace(), strategies="none,suffix,paged", progress=False)
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
    pairs = zip(rows.infinite, rows.prompt_tokens, strict=True)
    assert rows.infinite_s.tolist() == [costs.ttft_s(*pair) for pair in pairs]
    assert rows.attrs["manifest"]["estimated"] == costs.describe()


def test_what_is_moved_tells_no_seconds_of_ceilings() -> None:
    settings: dict[str, Any] = {"strategies": "suffix-naive:block=16"}
    rows = compare(small_trace(), progress=False, **settings)
    assert rows.infinite_s.isna().all()
    assert "median_s" not in list_ceilings(rows).dropna(axis="columns", how="all")
    costs = fitted()
    rows = compare(small_trace(), costs=costs, progress=False, **settings)
    pairs = zip(rows.infinite, rows.prompt_tokens, strict=True)
    assert rows.infinite_s.tolist() == [costs.ttft_s(*pair) for pair in pairs]


def test_reused_and_computed_make_the_prompt(rows: pd.DataFrame) -> None:
    assert (rows.reused_tokens + rows.computed_tokens == rows.prompt_tokens).all()
    assert (rows.computed_tokens >= 1).all()


def test_segments_cover_every_prompt(rows: pd.DataFrame) -> None:
    tokens = count_segments(small_trace()).groupby("request").tokens.sum()
    ceiling = rows[rows.strategy == "ceiling"]
    assert tokens.to_dict() == dict(
        zip(ceiling.request, ceiling.prompt_tokens, strict=True)
    )


def test_summary_weighs_by_tokens(rows: pd.DataFrame) -> None:
    own = rows.query("strategy == 'paged'")
    summary = summarize(rows)
    reused, of_ceiling, new_session = (
        summary[column].to_dict() for column in ("reused", "of_infinite", "new_session")
    )
    assert reused["paged"] == own.reused_tokens.sum() / own.prompt_tokens.sum()
    assert of_ceiling["ceiling"] == 1
    assert new_session["prefix@none"] < new_session["paged"]
    assert "ttft_median_s" not in summary


def test_json_has_manifest_and_rows(rows: pd.DataFrame, tmp_path: Path) -> None:
    write_json(rows, tmp_path / "new" / "out.json")
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert list(written) == ["manifest", "rows"]
    assert len(written["rows"]) == len(rows)
    assert all(list(row) == ROW for row in written["rows"])
    assert {row["ttft_s"] for row in written["rows"]} == {None}
    manifest = written["manifest"]
    assert manifest["traces"][0]["digest"] == small_trace().digest
    assert manifest["model"]["token_bytes"] == find_model().token_bytes
    assert manifest["simulated"] is True
    paged = next(c for c in manifest["strategies"] if c["strategy"] == "paged")
    assert paged["parameters"]["block"] > 0
    assert "drop-attribution" in paged["rules"]


def test_live_manifest_tells_device_blas_and_chunk() -> None:
    live = compare(small_trace(), strategies="prefix", chunk=512, progress=False)
    manifest = live.attrs["manifest"]
    assert manifest["chunk"] == 512
    assert manifest["blas"]
    assert manifest["device"]
    assert manifest["simulated"] is False


def test_json_that_cannot_be_written_says_where(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MlxlabError, match="file"):
        write_json(rows, tmp_path / "file" / "out.json")


def test_several_traces_start_from_empty_caches() -> None:
    both = compare(
        [small_trace("one"), small_trace("two")],
        strategies="paged",
        simulate=True,
        progress=False,
    ).query("strategy == 'paged'")
    one, two = (both[both.session.str.startswith(name)] for name in ("one:", "two:"))
    assert one.reused_tokens.tolist() == two.reused_tokens.tolist()


def test_notes_of_all_renderings_add_up() -> None:
    folder = find_model()
    folder.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content | length }}\n{% endfor %}"
    )
    rows = compare(
        small_trace(), model=folder, strategies="prefix@none,paged", simulate=True
    )
    notes = rows.attrs["manifest"]["notes"]
    assert [n for note, n in notes.items() if "coarse" in note] == [20]


def test_the_ceiling_may_be_named_too() -> None:
    rows = compare(
        small_trace(), strategies="ceiling,paged", simulate=True, progress=False
    )
    assert list(summarize(rows).index) == ["ceiling", "paged"]


def test_reads_contenders_with_parameters_and_rules() -> None:
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
        assert spec.make(token_bytes=1).exact


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
print(live.attrs["manifest"]["blas"])
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
