"""Which eviction policy helps on a trace, and how far each is from the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mlxlab as ml
from mlxlab.analysis.eviction.result import Evictions
from mlxlab.analysis.plots import save_eviction_plots
from mlxlab.analysis.tables import list_records
from mlxlab.errors import ConfigError, MlxlabError, StrategyError
from mlxlab.models.layout import CacheLayout
from mlxlab.strategies.eviction import EVICTIONS
from tests.support.exchanges import small_trace
from tests.support.hashes import weka_session, write_weka

QUICK: dict[str, Any] = {"progress": False, "layout": "96KiB"}
SIZES = ["1GiB", "2GiB", "16GiB"]


@pytest.fixture(scope="module")
def found() -> Evictions:
    traces = ["sessions", "subagents", "tasks"]
    return ml.evictions(traces, memory=SIZES, users=3, **QUICK)


def test_each_policy_is_simulated_at_each_size(found: Evictions) -> None:
    rows = found.requests.set_index(["policy", "capacity"])
    assert list(rows.index.unique("policy")) == list(EVICTIONS)
    assert list(rows.index.unique("capacity")) == [1 << 30, 2 << 30, 16 << 30]
    swept = ml.sweep(
        ["sessions", "subagents", "tasks"],
        ["paged", "paged:evict=residual"],
        capacities=SIZES,
        users=[3],
        scheduler="here",
        **QUICK,
    )
    names = {"paged": "lru", "paged:evict=residual": "residual"}
    assert len(swept.requests) == 6
    for own in list_records(swept.requests):
        row = rows.loc[(names[own["strategy"]], own["capacity"])]
        assert row.reused_tokens == own["reused_tokens"]
        assert row.evicted == own["evicted"]


def test_bounds_say_how_much_is_left(found: Evictions) -> None:
    bounds = list_records(found.bounds)
    best = {(own["bound"], own["memory"]): own["reused"] for own in bounds}
    unlimited = next(own["reused"] for own in bounds if own["bound"] == "unlimited")
    rows = found.summary()
    for row in list_records(rows):
        size, reused = row["capacity"], row["reused"]
        optimal, storing = best["optimal", size], best["storing", size]
        assert reused <= optimal
        assert row["to_optimal"] == pytest.approx(100 * (optimal - reused))
        assert row["to_storing"] == pytest.approx(100 * (storing - reused))
        assert storing <= optimal <= unlimited
    lru = rows[rows.policy == "lru"].set_index("capacity")
    assert (lru.points == 0).all()
    # With whole blocks and enough memory nothing is left, and no share of it.
    assert lru.to_optimal[16 << 30] == 0
    closed = rows.set_index(["policy", "capacity"]).closed
    assert np.isnan(closed[("residual", 16 << 30)])
    own = rows[(rows.policy == "residual") & (rows.capacity == 1 << 30)].iloc[0]
    way = lru.to_optimal[1 << 30]
    assert own.closed == pytest.approx((way - own.to_optimal) / way)


def test_the_curve_meets_the_simulations(found: Evictions) -> None:
    sizes = found.curve.capacity
    assert (sizes.min(), sizes.max()) == (1 << 29, 32 << 30)
    lru = found.requests[found.requests.policy == "lru"].set_index("capacity")
    curve = found.curve.set_index("capacity").reused_tokens
    assert curve.is_monotonic_increasing
    assert curve[lru.index].tolist() == lru.reused_tokens.tolist()


def test_it_says_which_policy_pays_and_what_is_left(found: Evictions) -> None:
    verdict, held, left = found.lines()
    assert found.best == "residual"
    assert verdict.startswith("residual reuses ")
    assert verdict.endswith(" over all sizes: paged:evict=residual.")
    assert held == (
        "From 16GiB on lru finds whatever is asked for again: no policy can do better."
    )
    assert left.startswith("Knowing the future would gain ")
    rows = found.summary()
    gains = rows[rows.policy == "residual"].points
    assert f" {gains.max():.1f} points more than lru at " in verdict
    assert f"{gains.min():+.1f} to {gains.max():+.1f}" in verdict
    text = repr(found)
    assert "MIN, all stored" in text
    assert verdict in text
    assert verdict in found._repr_html_()


def test_one_session_needs_no_policy() -> None:
    short = ml.evictions("sessions", memory="512MiB", **QUICK)
    assert short.lines() == [
        "lru is as good as any policy that was tried: nothing to gain.",
        "Nor would knowing the future gain anything: more memory would.",
    ]
    plenty = ml.evictions("sessions", memory="4GiB", policies=["residual"], **QUICK)
    assert plenty.lines() == [
        "lru is as good as any policy that was tried: nothing to gain.",
        "From 4GiB on lru finds whatever is asked for again: no policy can do better.",
    ]
    assert plenty.held == [4 << 30]


def verdict(*points: tuple[float, float]) -> str:
    """Return the verdict on two policies that gain these points at two sizes."""
    made = ml.evictions(small_trace(), memory=["8MiB", "16MiB"], **QUICK)
    rows = [
        {"policy": name, "capacity": size << 20, "prompt_tokens": 1000, "requests": 1}
        | {"reused_tokens": round(500 + 10 * own), "evicted": 0, "stored_bytes": 1}
        for name, gains in zip(("lru", "a", "b"), ((0.0, 0.0), *points), strict=True)
        for size, own in zip((8, 16), gains, strict=True)
    ]
    return Evictions(
        pd.DataFrame(rows), made.bounds, made.manifest, made.curve
    ).lines()[0]


def test_a_policy_pays_from_more_than_a_fifth_of_a_point_on() -> None:
    none = "lru is as good as any policy that was tried: nothing to gain."
    assert verdict((0.2, 0.1), (-3.0, 0.1)) == none
    assert verdict((0.5, -0.6), (0.0, 0.0)) == none
    assert verdict((0.3, 0.0), (5.0, -6.0)) == (
        "a reuses 0.3 points more than lru at 8MiB, +0.0 to +0.3 over all sizes: "
        "paged:evict=a."
    )
    assert "b reuses 2.0 points more than lru at 16MiB" in verdict((1, 1), (1, 2))


def test_sizes_are_found_where_none_are_given(tmp_path: Path) -> None:
    found = ml.evictions(["sessions", "subagents"], users=2, policies=[], **QUICK)
    assert list(found.requests.policy.unique()) == ["lru"]
    sizes = list(found.requests.capacity)
    assert [size & (size - 1) for size in sizes] == [0] * 5
    assert sizes[-1] == 16 * sizes[0]
    shares = found.requests.reused_tokens / found.requests.prompt_tokens
    most = found.bounds.reused[found.bounds.bound == "unlimited"].iloc[0]
    assert shares.iloc[-1] > most - 0.002 > shares.iloc[-2]
    path = write_weka(tmp_path / "w.json")
    tiny = ml.evictions(path, policies=[], **QUICK)  # none below a block
    assert tiny.requests.capacity.min() >= 64 * (96 << 10)


def test_hashed_traces_are_judged_too(tmp_path: Path) -> None:
    session = weka_session()
    paths = [write_weka(tmp_path / f"{name}.json", session) for name in "abc"]
    found = ml.evictions(paths, users=3, memory=["24MiB", "96MiB"], **QUICK)
    curve = found.curve.set_index("capacity").reused_tokens
    lru = found.requests[found.requests.policy == "lru"].set_index("capacity")
    assert curve[96 << 20] == lru.reused_tokens[96 << 20] > 0
    assert found.title.startswith(
        "a, b, c: 15 requests, 3,348 tokens of 96KiB, users: 3"
    )


def test_models_with_checkpoints_have_no_curve() -> None:
    layout = CacheLayout.plain(96 << 10, 1 << 20)
    found = ml.evictions(
        "subagents", layout=layout, memory="1GiB", policies=["residual"], progress=False
    )
    assert found.curve.empty
    assert found.plot().axes[0].lines
    rows = found.summary()
    assert (rows.to_optimal >= 0).all()
    recurrent = CacheLayout.plain(0, 1 << 20)
    with pytest.raises(ConfigError, match="tokens take no memory here; give memory"):
        ml.evictions("subagents", layout=recurrent, progress=False)


def test_what_traces_do_not_say_is_said(tmp_path: Path) -> None:
    session = weka_session()
    session["requests"] = session["requests"][:1]
    session["requests"][0]["stop"] = ""
    found = ml.evictions(write_weka(tmp_path / "w.json", session), **QUICK)
    line = (
        "none of the requests say how their answers ended: evict=residual and ttl "
        "knows less"
    )
    assert line in found.notes
    assert line in repr(found)
    only = ml.evictions(small_trace(), policies=["arc"], memory="8MiB", **QUICK)
    assert not any("of the requests say" in note for note in only.notes)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strategy": "prefix"}, "prefix: no policy can be judged"),
        ({"strategy": "suffix"}, "one of static-prefix, block-hash, paged"),
        ({"strategy": "paged:evict=lru"}, "leave evict out"),
        ({"strategy": "paged:disk=1GiB,capacity=1GiB"}, "leave capacity and disk out"),
        ({"policies": ["fifo"]}, "no such policy; give one of lru, residual"),
        ({"policies": "arc,fifo"}, "evict='fifo': no such policy"),
        ({"memory": "4"}, "memory '4': give bytes"),
        ({"memory": "1KiB"}, "holds no block"),
        ({"users": 0}, "users 0: give a whole number >= 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(settings: Any, says: str) -> None:
    with pytest.raises(MlxlabError, match=says) as caught:
        ml.evictions(**{"traces": small_trace(), **QUICK, **settings})
    assert isinstance(caught.value, ConfigError | StrategyError)


def test_the_picture_has_a_line_for_each_policy_and_bound(
    found: Evictions, tmp_path: Path
) -> None:
    (axes,) = found.plot().axes
    assert axes.get_legend_handles_labels()[1] == [*EVICTIONS, "MIN, all stored", "MIN"]
    dashes = {str(line.get_label()): line.get_linestyle() for line in axes.lines}
    assert {dashes[policy] for policy in EVICTIONS} == {"-"}
    assert (dashes["MIN, all stored"], dashes["MIN"]) == (":", "--")
    drawn = {len(np.asarray(line.get_xydata())) for line in axes.lines}
    assert drawn == {0, 3, len(found.curve)}  # the first is the key of two lines
    assert [label.get_text() for label in axes.get_xticklabels()] == SIZES
    (path,) = save_eviction_plots(found, tmp_path)
    assert path.name == "evictions.svg"
    assert path.read_bytes().startswith(b"<svg")
