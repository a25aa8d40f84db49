"""Specs: text parsed once, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.errors import StrategyError
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.rules import RULES
from mlxlab.replay.specs import StrategySpec, parse_specs
from mlxlab.strategies import STRATEGIES, Kind, ParameterValue
from mlxlab.strategies.eviction import EVICTIONS
from mlxlab.strategies.paged import Paged
from tests.support.traffic import DETERMINISTIC


@st.composite
def specs(draw: st.DrawFn) -> StrategySpec:
    """Any strategy with any of its parameters, under any rules."""
    policy = draw(st.sampled_from(list(STRATEGIES.values())))
    parameters: dict[str, ParameterValue] = {}
    for key in draw(st.lists(st.sampled_from([*policy.declared, ""]), unique=True)):
        if not key:
            continue
        declared = policy.declared[key]
        words = {
            "evict": list(EVICTIONS),
            "kv": ["16", "8", "k8v4"],
            "kv_group": ["32", "64"],
        }
        if key in words:
            parameters[key] = draw(st.sampled_from(words[key]))
        elif declared.read is not None:
            kinds = st.sampled_from(["system", "every64", "messages", "answer"])
            chosen = draw(st.lists(kinds, min_size=1, unique=True))
            parameters[key] = "+".join(chosen)
        elif declared.kind is Kind.WORD:
            parameters[key] = draw(st.sampled_from(declared.words))
        else:
            most = 100 if declared.kind is Kind.PERCENT else 10**17
            parameters[key] = draw(st.integers(declared.least, most))
    rules = draw(st.sets(st.sampled_from(list(RULES))))
    return StrategySpec(policy, parameters, tuple(n for n in RULES if n in rules))


@DETERMINISTIC
@given(first=specs(), second=specs())
def test_a_name_is_text_that_parses_back(
    first: StrategySpec, second: StrategySpec
) -> None:
    again = StrategySpec.parse(first.name)
    assert again == first
    assert hash(again) == hash(first)
    assert again.name == first.name
    assert (first == second) >= (first.name == second.name)
    if first != second:
        assert parse_specs(f"{first.name} , {second.name}") == (first, second)


def test_parameters_are_equal_in_any_order() -> None:
    one, other = (
        StrategySpec.parse(text)
        for text in ("paged:block=32,capacity=1GiB", "paged:capacity=1GiB,block=32")
    )
    assert one == other == StrategySpec(Paged, {"capacity": 1 << 30, "block": 32})
    assert one.name == "paged:block=32,capacity=1GiB"
    assert {one} == {other}
    # Recorded results go by names, so these stay as they are written.
    assert other.name == "paged:capacity=1GiB,block=32"


def test_specs_come_from_text_classes_and_specs() -> None:
    spec = StrategySpec(Paged, {"block": 16}, (), 7)
    found = parse_specs(["none,prefix@none", Paged, spec], "all", capacity=1 << 20)
    assert [own.name for own in found] == [
        "none",
        "prefix@none",
        "paged",
        "paged:block=16@none",
    ]
    assert [own.capacity for own in found] == [1 << 20] * 3 + [7]
    assert parse_specs(Paged) == parse_specs([Paged]) == parse_specs("paged")
    assert parse_specs(spec) == (spec,)


def test_a_capacity_applies_where_none_is_given() -> None:
    own, default = parse_specs("paged:capacity=1KiB,prefix", capacity=1 << 20)
    assert own.make(CacheLayout.plain(1)).capacity == 1 << 10
    assert default.make(CacheLayout.plain(1)).capacity == 1 << 20
    (none,) = parse_specs("none", capacity=1 << 20)
    assert none.make(CacheLayout.plain(1)).capacity == 1 << 20
    assert none.make(CacheLayout.plain(1)).parameters == {}


def test_a_spec_knows_whether_it_is_exact_without_being_made() -> None:
    assert StrategySpec.parse("mlx-lm").exact
    assert not StrategySpec.parse("suffix:rotate=no").exact


@pytest.mark.parametrize(
    ("strategies", "says"),
    [
        ("paged,paged", "strategies: paged is named twice"),
        (["paged", Paged], "strategies: paged is named twice"),
        ("suffix:run=9,head=8,suffix:head=8,run=9", "strategies: suffix:head=8,run=9"),
        (["paged", 5], "strategies: 5 is not a strategy; give a name, a spec such as"),
        ([int], "strategies: <class 'int'> is not a strategy"),
        ("paged:size=3", "paged: no parameter 'size'; accepted: block, capacity"),
        ("paged:block=0", "paged: block=0 is not accepted; give a whole number >= 1"),
        ("none:capacity=9", "none: no parameter 'capacity'; accepted: no parameters"),
    ],
)
def test_a_bad_spec_is_refused_with_what_is_accepted(
    strategies: object, says: str
) -> None:
    with pytest.raises(StrategyError) as caught:
        parse_specs(strategies)  # type: ignore[arg-type]
    assert str(caught.value).startswith(says)
