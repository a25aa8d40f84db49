from __future__ import annotations

import pytest

from mlxlab.errors import StrategyError
from mlxlab.models.layout import CacheLayout
from mlxlab.strategies import STRATEGIES, make_strategy, parse_strategy
from mlxlab.strategies.base import CAPACITY


def test_names_stand_in_order_of_sophistication() -> None:
    assert list(STRATEGIES) == [
        "none",
        "prefix",
        "static-prefix",
        "block-hash",
        "paged",
        "mlx-lm",
        "suffix",
        "suffix-naive",
        "segmented",
        "segmented-naive",
    ]


def test_only_what_moves_keys_is_approximate() -> None:
    moving = ["suffix", "suffix-naive", "segmented", "segmented-naive"]
    assert [n for n, strategy in STRATEGIES.items() if not strategy.exact] == moving


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        ("none", {}),
        ("prefix:capacity=9", {"capacity": 9}),
        ("static-prefix", {"slots": 4, "capacity": CAPACITY}),
        (
            "block-hash:slots=2",
            {"block": 256, "slots": 2, "minimum": 512, "capacity": CAPACITY},
        ),
        ("paged", {"block": 64, "capacity": 4 * 2**30}),
        ("paged:block=32,capacity=1GiB", {"block": 32, "capacity": 2**30}),
        (" paged: block = 32, capacity = 5 MiB", {"block": 32, "capacity": 5 * 2**20}),
        ("mlx-lm:capacity=3KiB", {"max_size": 10, "capacity": 3 * 2**10}),
    ],
)
def test_a_spec_names_a_strategy_and_its_parameters(
    spec: str, parameters: dict[str, int]
) -> None:
    strategy = parse_strategy(spec, layout=CacheLayout.plain(7))
    assert isinstance(strategy, STRATEGIES[strategy.name])
    assert strategy.parameters == parameters
    assert strategy.token_bytes == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lru", "no strategy 'lru'; choose from none, prefix, static-prefix, block"),
        ("", "no strategy ''; choose from none"),
        ("paged:size=3", "paged: no parameter 'size'; accepted: block, capacity"),
        ("prefix:slots=3", "prefix: no parameter 'slots'; accepted: capacity"),
        ("paged:token_bytes=3", "paged: no parameter 'token_bytes'; accepted: block,"),
        ("paged:block=0", "paged: block=0 is not accepted; give a whole number >= 1"),
        ("paged:block=-1", "cannot read 'block=-1'; give key=number"),
        ("paged:block", "cannot read 'block'; give key=number"),
        ("paged:", "cannot read ''; give key=number"),
        ("paged:capacity=1GB", "cannot read 'capacity=1GB'; give key=number, with KiB"),
        ("paged:block=" + 5000 * "9", "give key=number"),
        ("paged:block=8,block=8", "block is given twice"),
        ("paged:capacity=255", "capacity=255 holds no block; give at least 256 bytes"),
    ],
)
def test_a_bad_spec_is_told_what_would_do(spec: str, message: str) -> None:
    with pytest.raises(StrategyError) as caught:
        parse_strategy(spec, layout=CacheLayout.plain(4))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_value_is_told_what_would_do() -> None:
    with pytest.raises(StrategyError, match="token_bytes=0 is not accepted"):
        make_strategy("none", token_bytes=0)
    with pytest.raises(StrategyError, match="slots=True is not accepted"):
        make_strategy("static-prefix", slots=True)


def test_repr_tells_instances_apart() -> None:
    assert (
        repr(make_strategy("paged", block=8)) == "Paged(block=8, capacity=4294967296)"
    )
