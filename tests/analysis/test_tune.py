from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlxlab import compare
from mlxlab.analysis.tune import tune
from mlxlab.analysis.tuning import Tuning, rank
from mlxlab.errors import StrategyError
from mlxlab.jupyter.magics import ServeMagics
from mlxlab.models.layout import CacheKind, CacheLayout, LayerCache
from mlxlab.replay.specs import StrategySpec
from mlxlab.server.aliases import Aliases
from mlxlab.strategies import STRATEGIES, parse_strategy
from mlxlab.strategies.placements import DEFAULT
from mlxlab.traces import load_trace
from tests.replay.test_cost_model import fitted
from tests.support.exchanges import small_trace


@pytest.fixture(scope="module")
def found() -> Tuning:
    return tune(small_trace(), memory=1 << 20, trials=40, progress=False)


def test_every_exact_strategy_is_tried_and_the_best_comes_first(found: Tuning) -> None:
    trials = found.requests
    assert set(trials.name) == {n for n, s in STRATEGIES.items() if s.exact}
    assert trials.cost.is_monotonic_increasing
    assert trials.strategy.is_unique
    assert (trials.stored_bytes <= 1 << 20).all()
    assert found.best.reused_tokens <= found.optimal <= found.unlimited
    assert found.runner_up["name"] != found.best["name"]


def test_what_is_recommended_does_what_was_promised(found: Tuning) -> None:
    for row in (found.best, found.runner_up):
        own = compare(
            small_trace(), strategies=row.strategy, simulate=True, progress=False
        ).requests
        assert own.reused_tokens.sum() == row.reused_tokens
        assert own.computed_tokens.mean() == row.cost


def trials(**columns: list[Any]) -> pd.DataFrame:
    names = list("abcdefgh")[: len(columns["cost"])]
    return pd.DataFrame({"strategy": names, "name": names, **columns})


def test_costs_within_the_error_are_ties_that_safety_and_memory_settle() -> None:
    tried = trials(
        cost=[1.0, 1.02, 1.04, 1.04, 1.06, 9.0],
        several=[False, True, True, False, True, True],
        stored_bytes=[10, 30, 20, 5, 1, 1],
    )
    assert rank(tried, 0.05).strategy.tolist() == list("cbdaef")
    assert rank(tried, 0.0).strategy.tolist() == list("abdcef")
    assert rank(tried, 0.07).strategy.tolist() == list("ecbdaf")
    one_slot = tried.assign(several=False)
    assert rank(one_slot, 0.05).strategy.tolist() == list("dacbef")


def test_no_single_slot_is_recommended_to_several_agents() -> None:
    """Whether seconds are estimated well, badly, or not at all."""
    subagents = load_trace("subagents")
    for costs, trials in ((None, 8), (fitted(), 8), (fitted(noise=0.4), 24)):
        settings: dict[str, Any] = {"progress": False, "costs": costs, "trials": trials}
        found = tune(subagents, memory=4 << 30, **settings)
        assert found.best.several
        assert parse_strategy(found.best.strategy).max_sequences != 1
        assert found.error == (costs.error if costs else 0.0)
        assert (found.tied.cost <= found.requests.cost.min() * (1 + found.error)).all()
        assert found.best.cost <= found.requests.cost.min() * (1 + found.error)
        safe = found.tied[found.tied.several]
        assert (safe.stored_bytes >= found.best.stored_bytes).all()
        text = repr(found)
        assert ("Tied " in text) == bool(len(found.tied))
        assert all(strategy in text for strategy in found.tied.strategy)
    assert len(found.tied), "an error of a tenth ties some"
    assert "within the estimate's error of" in text


def test_ties_are_named_beside_what_settles_them() -> None:
    """One session, that any slot holds: what is tied differs in what it can hold."""
    found = tune(load_trace("sessions"), memory=4 << 30, trials=8, progress=False)
    assert found.best.several
    assert "prefix" in found.tied.name.tolist()
    tie = next(line for line in found.lines() if line.startswith("Tied "))
    assert "Tied token for token: " in tie
    assert "one sequence only" in tie
    assert "the recommended one holds several sequences in" in tie
    assert tie.replace("'", "&#x27;") in found._repr_html_()


def test_the_title_says_that_traces_share_a_cache(found: Tuning) -> None:
    assert "share one cache, one after the other" in found.title
    assert repr(found).startswith(found.title)
    assert found.title in found._repr_html_()


def test_the_same_seed_finds_the_same(found: Tuning) -> None:
    again = tune(small_trace(), memory=1 << 20, trials=40, progress=False)
    assert again.requests.equals(found.requests)
    assert again.lines() == found.lines()


def test_the_recommendation_can_be_served(found: Tuning, tmp_path: Any) -> None:
    path = tmp_path / "model_aliases.json"
    path.write_text(found.alias)
    assert Aliases.load(path).default.strategy == found.best.strategy
    options = ServeMagics.serve.parser.parse_argstring(found.serve_line[7:])
    assert (options.strategy, options.model) == (found.best.strategy, "tiny")


def test_it_says_why(found: Tuning) -> None:
    text = repr(found)
    assert found.serve_line in text
    assert f"Runner-up: {found.runner_up.strategy}" in text
    assert "unlimited memory would reuse" in text
    for name in set(found.requests.name) - {found.best["name"]}:
        assert f"- {name} at its best" in text
    assert "tokens to compute" in text
    assert "<li>" in found._repr_html_()


def test_with_a_calibration_it_is_seconds_that_count() -> None:
    found = tune(
        small_trace(), memory=1 << 20, costs=fitted(), trials=8, progress=False
    )
    assert found.best.cost == found.best.ttft_mean_s
    assert "time to first token" in repr(found)
    assert found.manifest["estimated"]["points"] == 96


def test_little_memory_is_told() -> None:
    little = tune(small_trace(), memory=300 << 10, trials=8, progress=False)
    assert "Memory is short" in repr(little)
    plenty = tune(small_trace(), memory=1 << 40, trials=8, progress=False)
    assert "a budget of that would do" in repr(plenty)


def test_approximate_ones_take_part_if_they_were_measured_to_be_close(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What comes with mlxlab for the bundled model says how close they are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # others measure too

    def names(kld: float | None) -> set[str]:
        settings: dict[str, Any] = {"trials": 1, "progress": False}
        return set(
            tune(small_trace(), memory=1 << 30, kld=kld, **settings).requests.name
        )

    exact = names(None)
    assert all(STRATEGIES[name].exact for name in exact)
    assert names(0.0) == exact
    assert {"suffix", "segmented"} <= names(1.0) - exact
    assert "suffix-naive" not in names(1.0)
    monkeypatch.setattr("mlxlab.analysis.fidelity.store._PREPARED", tmp_path / "none")
    assert names(1.0) == exact


def test_a_budget_that_holds_nothing_is_refused() -> None:
    with pytest.raises(StrategyError, match="capacity=9 holds no block"):
        tune(small_trace(), memory=9, progress=False)


HYBRID = "24KiB+2MiB"
WINDOWS = CacheLayout(
    (
        LayerCache(1, CacheKind.TOKENS, 512),
        LayerCache(1, CacheKind.WINDOW, 512, window=128),
    )
)


def parameters(found: Tuning) -> list[dict[str, Any]]:
    return [
        dict(StrategySpec.parse(text).parameters) for text in found.requests.strategy
    ]


def test_places_and_their_share_are_tuned_where_checkpoints_are_needed() -> None:
    found = tune(
        small_trace(), memory=64 << 20, layout=HYBRID, trials=40, progress=False
    )
    tried = parameters(found)
    assert {"paged", "prefix"} <= set(found.requests.name)
    for own in tried:
        assert not own.keys() & {"block", "windows"}
    placed = [own for own in tried if "checkpoints" in own]
    assert len({own["checkpoints"] for own in placed}) > 2
    assert len({own["share"] for own in placed}) > 2
    share = STRATEGIES["paged"].declared["share"].default
    defaults = {"checkpoints": DEFAULT, "share": share, "capacity": 64 << 20}
    assert defaults in tried, "defaults are among what is tried"
    for text in found.requests.strategy:
        parse_strategy(text, layout=CacheLayout.plain(24 << 10, 2 << 20))
    said = "\n".join(found.reasons())
    if found.best["name"] in {"paged", "prefix", "static-prefix", "block-hash"}:
        assert "checkpoints=" in said
        assert "share=" in said
        assert ".0," not in said


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_default_is_among_the_values_to_try(name: str) -> None:
    for key, own in STRATEGIES[name].declared.items():
        assert not own.tries or own.default in own.tries, key


def test_a_recommendation_for_another_layout_is_no_line_to_serve_this_model() -> None:
    found = tune(
        small_trace(), memory=64 << 20, layout=HYBRID, trials=8, progress=False
    )
    assert not found.servable
    assert "%serve" not in repr(found)
    assert "%serve" not in found._repr_html_()
    assert "tiny has another and refuses it" in repr(found)
    plain = tune(small_trace(), memory=1 << 20, trials=8, progress=False)
    assert plain.servable
    for own in parameters(plain):
        assert not own.keys() & {"checkpoints", "share", "windows"}


def test_windows_are_tuned_with_what_belongs_to_each_way_of_keeping_them() -> None:
    found = tune(
        small_trace(), memory=8 << 20, layout=WINDOWS, trials=60, progress=False
    )
    ways = {own.get("windows") for own in parameters(found)} - {None}
    assert ways == {"tokens", "checkpoints"}
    for text, own in zip(found.requests.strategy, parameters(found), strict=True):
        parse_strategy(text, layout=WINDOWS)
        assert ("share" in own) == (own.get("windows") == "checkpoints")
        if own.get("windows") == "checkpoints":
            assert "block" not in own
    assert repr(found)


def test_only_shares_that_hold_a_checkpoint_are_tried() -> None:
    found = tune(
        small_trace(), memory=3 << 20, layout=HYBRID, trials=30, progress=False
    )
    assert {own["share"] for own in parameters(found) if "share" in own} == {75, 90}


@pytest.mark.parametrize("kld", [None, 1.0])
def test_nothing_that_moves_is_tried_with_checkpoints(kld: float | None) -> None:
    found = tune(
        small_trace(), memory=8 << 20, layout=HYBRID, kld=kld, trials=1, progress=False
    )
    assert all(STRATEGIES[name].exact for name in found.requests.name)


def test_a_budget_that_holds_no_checkpoint_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlxlab.analysis.tune.open_sources", None)
    with pytest.raises(StrategyError) as caught:
        tune(small_trace(), memory=1 << 20, layout=HYBRID, progress=False)
    assert str(caught.value) == "memory=1MiB holds no checkpoint of 2MiB; give more"


def test_words_are_compared_like_numbers() -> None:
    """Also parameters that only some trials have."""
    found = tune(
        small_trace(), memory=64 << 20, layout=HYBRID, trials=8, progress=False
    )
    rows = pd.DataFrame(
        {
            "strategy": [
                "paged:windows=checkpoints,checkpoints=prompt+answer,share=50",
                "paged:windows=checkpoints,checkpoints=omlx,share=10",
                "paged:windows=tokens,block=64",
            ],
            "name": "paged",
            "several": True,
            "cost": [1.0, 1.5, 2.0],
            "stored_bytes": 1,
            "prompt_tokens": 10,
            "reused_tokens": 5,
        }
    )
    said = replace(found, requests=rows)._parameters()
    more = "tokens to compute."
    assert [line.split("; others cost up to ") for line in said] == [
        ["windows=checkpoints, of checkpoints, tokens tried", f"+100.0% {more}"],
        ["checkpoints=prompt+answer, of omlx, prompt+answer tried", f"+50.0% {more}"],
        ["share=50, of 10, 50 tried", f"+50.0% {more}"],
    ]


def test_a_model_with_state_is_tuned_without_blocks() -> None:
    settings: dict[str, Any] = {"memory": 1 << 20, "progress": False, "trials": 8}
    found = tune(small_trace(), layout=CacheLayout.plain(256, 4096), **settings)
    assert found.requests.reused_tokens.max() > 0
    assert not found.requests.strategy.str.contains("block=").any()
    model = found.manifest["model"]
    assert (model["token_bytes"], model["checkpoint_bytes"]) == (256, 4096)


def test_a_disk_is_tried_and_pays_where_memory_is_short() -> None:
    found = tune(
        small_trace(), memory=200 << 10, disk=64 << 20, trials=24, progress=False
    )
    exact = {n for n, s in STRATEGIES.items() if s.exact}
    on_disk = found.requests[found.requests.disk_bytes > 0]
    assert set(on_disk.name) == exact - {"none"}
    assert set(found.requests.name) == exact
    assert found.best.disk_bytes == 64 << 20
    assert found.best.disk_tokens > 0
    assert "disk=64MiB" in found.best.strategy
    without = found.requests[found.requests.disk_bytes == 0].cost.min()
    less = 1 - found.best.cost / without
    (line,) = [own for own in found.reasons() if "A disk" in own]
    assert line == (
        f"A disk of 64MiB pays: it takes {less:.1%} off the tokens to compute."
    )


def test_a_disk_does_not_pay_where_memory_holds_everything() -> None:
    found = tune(
        small_trace(), memory=64 << 20, disk=64 << 20, trials=16, progress=False
    )
    assert found.best.disk_bytes == 0
    (line,) = [own for own in found.reasons() if "A disk" in own]
    assert line == (
        "A disk of 64MiB does not pay here: without it no more tokens to compute."
    )


def test_slow_disks_are_not_used() -> None:
    trace, spec = small_trace(), "prefix:capacity=1,disk=64MiB"
    costs = fitted()
    quick = compare(trace, spec, simulate=True, costs=costs, progress=False).requests
    slow = costs.model_copy(update={"load": 1.0})
    rows = compare(trace, spec, simulate=True, costs=slow, progress=False).requests
    assert quick.disk_tokens.sum() > rows.disk_tokens.sum() == 0
    loads = quick[quick.disk_tokens > 0]
    assert (loads.restore_s > costs.load * loads.disk_tokens).all()


def evictions_said(found: Tuning) -> list[str]:
    return [
        line for line in found.reasons() if "evict=" in line and "best (" not in line
    ]


@pytest.mark.parametrize(("memory", "pays"), [(1 << 20, True), (64 << 20, False)])
def test_it_says_whether_another_policy_pays(memory: int, pays: bool) -> None:
    settings: dict[str, Any] = {"without": ["mlx-lm"], "progress": False}
    found = tune(small_trace(), memory=memory, trials=12, **settings)
    own = dict(StrategySpec.parse(found.best.strategy).parameters)
    shares = {
        policy: row.reused_tokens / row.prompt_tokens
        for _, row in found.requests.iterrows()
        for policy in ("lru", "residual")
        if dict(StrategySpec.parse(row.strategy).parameters) == {**own, "evict": policy}
    }
    assert shares.keys() == {"lru", "residual"}  # both with the best parameters
    points = 100 * (shares["residual"] - shares["lru"])
    (said,) = evictions_said(found)
    if pays:
        assert said == (
            f"evict=residual pays: it reuses {points:.1f} points more of all prompt "
            "tokens than lru."
        )
    else:
        assert said == "evict=lru is as good (residual: +0.0 points)."
    alone = found.requests[found.requests.strategy == found.best.strategy]
    assert evictions_said(replace(found, requests=alone)) == []
