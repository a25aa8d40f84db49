"""Remedies: a rule or setting that would have helped, and no other."""

from __future__ import annotations

import pytest

from mlxlab.analysis.misses.causes import (
    BY_STRATEGY,
    NOTHING,
    Cause,
    CauseKind,
    remedy_of,
)
from mlxlab.analysis.misses.evictions import block_of
from mlxlab.prompt import Prompt, Role
from mlxlab.rendering.rules import RULES
from mlxlab.strategies import STRATEGIES, Limit, parameter, parse_strategy
from mlxlab.strategies.none import NoReuse

PAGED = parse_strategy("paged")


@pytest.mark.parametrize("spec", [n for n, s in STRATEGIES.items() if n != "mlx-lm"])
@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_a_remedy_or_says_that_there_is_none(
    spec: str, cause: Cause
) -> None:
    strategy = parse_strategy(spec)
    if cause is Cause.BLOCK and Limit.BLOCK not in strategy.limits:
        return
    for rules in ((), tuple(RULES)):
        assert remedy_of(cause, strategy, rules)


@pytest.mark.parametrize(
    ("cause", "rule", "roles"),
    [
        (Cause.HEADER, "drop-attribution", {}),
        (Cause.INLINE, "inline-system", {}),
        (Cause.ENVIRONMENT, "inline-system", {"changed": Role.INLINE_SYSTEM}),
        (Cause.WORDS, "environment-first", {"lost": Role.INLINE_SYSTEM}),
        (Cause.TOOLS, "deferred-tools", {"rule": "deferred-tools"}),
        (Cause.SYSTEM, "git-status-last", {"rule": "git-status-last"}),
    ],
)
def test_a_rule_is_named_until_it_is_in_force(
    cause: Cause, rule: str, roles: dict[str, Role | str]
) -> None:
    others = [name for name in RULES if name != rule]
    assert remedy_of(cause, PAGED, others, **roles) == f"rule {rule}"  # type: ignore[arg-type]
    assert rule not in remedy_of(cause, PAGED, RULES, **roles)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "cause", "remedy"),
    [
        ("prefix", Cause.EVICTED, "paged"),
        ("paged", Cause.EVICTED, "capacity"),
        ("static-prefix", Cause.EVICTED, "slots"),
        ("none", Cause.NOT_KEPT, "paged"),
        ("paged", Cause.NOT_KEPT, "capacity"),
        ("block-hash", Cause.MINIMUM, "a smaller minimum"),
        ("block-hash", Cause.NOT_KEPT, "a smaller minimum"),
        ("paged:block=64", Cause.BLOCK, "block=32 (about half of them)"),
        ("block-hash", Cause.BLOCK, "block=128 (about half of them)"),
    ],
)
def test_what_lies_with_the_strategy_names_its_setting(
    spec: str, cause: Cause, remedy: str
) -> None:
    assert cause in BY_STRATEGY
    assert remedy_of(cause, parse_strategy(spec), RULES) == remedy


def test_a_full_memory_and_units_count_too() -> None:
    full = parse_strategy("block-hash:block=128,minimum=64", unit=64, capacity=256)
    ids = Prompt.of(range(4))
    full.commit(ids, full.plan(ids))
    assert full.stored_bytes == 256
    assert remedy_of(Cause.NOT_KEPT, full, RULES) == "capacity"
    assert remedy_of(Cause.BLOCK, full, RULES, unit=64).startswith("block=64 ")


def test_an_approximate_strategy_is_no_remedy_for_itself() -> None:
    assert remedy_of(Cause.SYSTEM, PAGED, RULES) == "suffix (approximate)"
    own = remedy_of(Cause.SYSTEM, parse_strategy("suffix"), RULES)
    assert own == f"{NOTHING}beyond the limits of suffix"


def test_causes_have_the_kinds_of_the_literature() -> None:
    kinds = {kind: {c for c in Cause if c.kind is kind} for kind in CauseKind}
    assert kinds[CauseKind.CAPACITY] == {Cause.EVICTED, Cause.NOT_KEPT}
    assert kinds[CauseKind.GRANULARITY] == {
        *(Cause.MINIMUM, Cause.BLOCK, Cause.NO_CHECKPOINT)
    }
    assert kinds[CauseKind.COMPULSORY] == {
        *(Cause.SESSION, Cause.AGENT, Cause.SIDE, Cause.FRESH, Cause.LAST)
    }
    assert {Cause.HEADER, Cause.TOOLS, Cause.AGAIN} < kinds[CauseKind.INVALIDATED]
    # An unchanged prompt invalidates nothing but tokens that approximate reuse moved.
    assert kinds[CauseKind.INVALIDATED] & BY_STRATEGY == {Cause.AGAIN}


def test_remedies_name_the_parameter_that_a_strategy_declares() -> None:
    class Renamed(NoReuse):
        """Has other names for its limits."""

        name = "renamed"
        page: int = parameter(32, "Tokens in a page.", Limit.BLOCK)
        entries: int = parameter(3, "Sequences to hold.", Limit.SLOTS)
        least: int = parameter(64, "Least tokens to restore.", Limit.MINIMUM)
        occupancy = (0, 3)

    strategy = Renamed()
    assert remedy_of(Cause.EVICTED, strategy, RULES) == "entries"
    assert remedy_of(Cause.NOT_KEPT, strategy, RULES) == "a smaller least"
    assert remedy_of(Cause.MINIMUM, strategy, RULES) == "a smaller least"
    assert remedy_of(Cause.BLOCK, strategy, RULES) == "page=16 (about half of them)"
    assert block_of(strategy) == 32
