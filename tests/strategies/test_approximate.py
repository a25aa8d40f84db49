from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given

from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.prompt import Prompt
from mlxlab.strategies import Plan, Selection, parse_strategy
from mlxlab.strategies.approximate import Approximate
from mlxlab.strategies.sequences.matches import CachedSequence
from tests.support.edited import (
    Piece,
    edited_traffic,
    message,
    request,
    system,
    text,
    tool,
)
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC

BOTH = pytest.mark.parametrize("name", ["suffix", "segmented"])
LOOSE = "block=4,run=4,head=1,tail=1,shift=0,rewritten=0,governing=0"


def make(spec: str) -> Approximate:
    strategy = parse_strategy(spec)
    assert isinstance(strategy, Approximate)
    return strategy


@dataclass
class Stretch:
    """Moved spans that follow on from each other."""

    origin: int
    target: int
    length: int


def stretches(plan: Plan) -> list[Stretch]:
    found: list[Stretch] = []
    for span in plan.spans:
        if span.origin is None:
            continue
        last = found[-1] if found else Stretch(-1, -1, 0)
        ends = (last.target + last.length, last.origin + last.length)
        if ends == (span.target, span.origin):
            last.length += span.length
        else:
            found.append(Stretch(span.origin, span.target, span.length))
    return found


def check_limits(strategy: Approximate, plan: Plan, prompt: Prompt) -> None:
    """All that can be told from a plan, counted anew."""
    for span in plan.spans:
        assert span.exact or span.target + span.length <= len(prompt) - strategy.tail
        assert not span.moved or span.generation <= strategy.generation
    start = plan.reused + plan.recompute - plan.moved
    taken = 0
    for number, run in enumerate(stretches(plan), start=1):
        assert not strategy.shift or abs(run.target - run.origin) <= strategy.shift
        whole = run.length + strategy.head
        assert whole >= strategy.run or strategy.selection == "first"
        new = run.target - start - taken - number * strategy.head
        assert not strategy.rewritten or 100 * new <= strategy.rewritten * whole
        taken += run.length
    picked = 0 if strategy.selection == "first" else strategy.recompute
    assert plan.recompute == -(-plan.moved * picked // 100)


@pytest.mark.parametrize(
    ("spec", "capacity"),
    [
        (f"suffix:{LOOSE}", 4000),
        (f"suffix:{LOOSE},sequences=2", 80),
        ("suffix:block=4,run=8,head=2,tail=5,shift=9,rewritten=80,governing=4", 100),
        ("suffix:block=3,run=2,head=0,tail=1,generation=1,rewritten=0", 99),
        (f"suffix:{LOOSE},recompute=30,selection=random", 100),
        ("suffix-naive:block=4", 4000),
        (f"segmented:{LOOSE}", 4000),
        (f"segmented:{LOOSE},sequences=2", 80),
        ("segmented:block=4,run=8,head=2,tail=5,shift=9,rewritten=80,governing=4", 100),
        ("segmented:block=3,run=2,head=0,tail=1,generation=1,rewritten=0", 99),
        ("segmented:block=4,run=2,head=0,tail=2,recompute=100,rewritten=0", 100),
        ("segmented-naive:block=4", 100),
    ],
)
def test_plans_are_true_and_within_limits(spec: str, capacity: int) -> None:
    seen: Counter[str] = Counter()

    @DETERMINISTIC
    @given(requests=edited_traffic())
    def check(requests: list[Request]) -> None:
        strategy = make(f"{spec},capacity={capacity}")
        ledger = Ledger(lambda store: store.tokens <= capacity, block=strategy.block)
        for asked in requests:
            plan, commit = ledger.exchange(strategy, asked)
            check_limits(strategy, plan, asked.prompt)
            seen["moved"] += plan.moved > 0
            seen["approximate"] += any(span.generation > 0 for span in plan.spans)
            seen["evicted"] += commit.evicted > 0
            seen["request"] += 1

    check()
    assert seen["moved"] > seen["request"] / 20
    assert seen["approximate"] > 0
    assert seen["evicted"] > 0 or capacity == 4000


@BOTH
def test_a_conversation_goes_on_over_its_own_approximate_keys(name: str) -> None:
    strategy, ledger = make(name), Ledger(block=64)
    body = [tool(9000, 2), message(600, 3)]
    ledger.exchange(strategy, request(system(10, 1), *body))
    first, _ = ledger.exchange(strategy, request(system(12, 4), *body))
    turn = request(system(12, 4), *body, message(300, 5))
    second, _ = ledger.exchange(strategy, turn)
    assert first.moved > 9000
    run = 14 if name == "suffix" else 16  # the template's tokens too, or not
    assert (first.exact_length, first.generation) == (run + 32, 1)
    assert second.moved == 0
    assert {span.generation for span in second.spans} == {1}
    assert second.reused == len(request(system(12, 4), *body).ids) // 64 * 64
    assert second.exact_length == 0


@BOTH
def test_an_exact_computation_takes_the_place_of_an_approximate_one(name: str) -> None:
    strategy = make(f"{name}:{LOOSE}")
    ledger = Ledger(block=4)
    tools = tool(40, 2)
    ledger.exchange(strategy, request(system(7, 1), tools))
    ledger.exchange(strategy, request(system(9, 3), tools))
    again = request(system(9, 3), tools, message(6, 4))
    before = strategy.plan(again.prompt)
    assert {span.generation for span in before.spans} == {0, 1}
    commit = ledger.compute(strategy, again)
    stale = {span.handle for span in before.spans if span.generation}
    assert stale == set(commit.drop)
    assert commit.evicted == 0
    after, _ = ledger.exchange(strategy, again)
    assert all(span.exact for span in after.spans)
    assert after.reused == len(again.ids) // 4 * 4


@BOTH
def test_nothing_approximate_is_moved(name: str) -> None:
    strategy, ledger = make(f"{name}:{LOOSE}"), Ledger(block=4)
    tools, news = tool(40, 2), message(40, 5)
    ledger.exchange(strategy, request(system(7, 1), tools))
    ledger.exchange(strategy, request(system(9, 3), tools, news))
    plan, _ = ledger.exchange(strategy, request(system(11, 6), tools, news))
    # The tools are moved from where they were exact; the message never was.
    (run,) = stretches(plan)
    assert (run.origin, run.length) == ((10, 38) if name == "suffix" else (12, 36))
    assert {span.generation for span in plan.spans} == {0}


@BOTH
def test_a_generation_may_be_moved_if_that_is_asked_for(name: str) -> None:
    strategy, ledger = make(f"{name}:{LOOSE},generation=1"), Ledger(block=4)
    tools, news = tool(40, 2), message(40, 5)
    ledger.exchange(strategy, request(system(7, 1), tools))
    ledger.exchange(strategy, request(system(9, 3), tools, news, message(9, 7)))
    plan, _ = ledger.exchange(
        strategy, request(system(11, 6), tools, news, message(9, 7))
    )
    assert {span.generation for span in plan.spans} == {1}
    assert plan.generation == 2


@BOTH
def test_recomputed_tokens_do_not_count_as_reused(name: str) -> None:
    old = request(system(10, 1), tool(9000, 2))
    new = request(system(10, 3), tool(9000, 2))
    plans = {}
    for spec in ("", "recompute=15", "recompute=15,selection=random", "recompute=100"):
        strategy = make(f"{name}:{spec}" if spec else name)
        strategy.commit(old.prompt, Plan(len(old.ids)))
        plans[spec] = strategy.plan(new.prompt)
    moved = plans[""].moved
    assert moved == plans["recompute=15"].moved > 8000
    assert plans["recompute=15"].recompute == -(-moved * 15 // 100)
    assert plans["recompute=15"].selection == Selection.ATTENTION
    assert plans["recompute=15,selection=random"].selection == Selection.RANDOM
    assert plans["recompute=100"].reused == 0


def planned(spec: str, old: Request, new: Request) -> Plan:
    """The plan for ``new`` after ``old`` was computed exactly."""
    strategy = make(spec)
    strategy.commit(old.prompt, Plan(len(old.ids)))
    return strategy.plan(new.prompt)


@BOTH
def test_first_tokens_are_recomputed_as_longer_heads(name: str) -> None:
    old = request(system(10, 1), tool(9000, 2))
    new = request(system(10, 3), tool(9000, 2), message(70, 4))
    whole = planned(f"{name}:head=0", old, new)
    cut = planned(f"{name}:head=100,recompute=10,selection=first", old, new)
    assert whole.moved - cut.moved == 100 + -(-(whole.moved - 100) // 10)
    assert cut.recompute == 0


# Behind 128 tokens in place, 302 are new, 298 of them system text; 502 follow.
OLD = request(system(126, 1), message(500, 2), message(78, 3))
NEW = request(system(126, 1), system(298, 4), message(500, 2), message(80, 5))


@BOTH
@pytest.mark.parametrize(
    ("limit", "moved"),
    [
        ("run=502", True),
        ("run=503", False),
        ("shift=300", True),
        ("shift=299", False),
        ("rewritten=61", True),
        ("rewritten=60", False),
        ("governing=298", True),
        ("governing=297", False),
        ("head=501", True),
        ("head=502", False),
        ("tail=80", True),
        ("tail=81", False),
        ("recompute=99", True),
        ("recompute=100", False),
    ],
)
def test_each_limit_holds_to_the_token(name: str, limit: str, moved: bool) -> None:
    limits = {
        "run": "502",
        "shift": "0",
        "rewritten": "0",
        "governing": "0",
        "selection": "first",
    }
    key, _, value = limit.partition("=")
    spec = ",".join(f"{k}={v}" for k, v in {**limits, key: value}.items())
    plan = planned(f"{name}:{spec}", OLD, NEW)
    assert (plan.moved > 0) == moved
    assert plan.best_match == 128 + 502
    if not moved:
        exact = planned_paged(OLD, NEW)
        assert plan.spans == exact.spans
        assert plan.exact_length == len(NEW.ids)


def planned_paged(old: Request, new: Request) -> Plan:
    strategy = parse_strategy("paged")
    strategy.commit(old.prompt, Plan(len(old.ids)))
    return strategy.plan(new.prompt)


@BOTH
def test_keys_are_rotated_unless_told_otherwise(name: str) -> None:
    loose = "rewritten=0,governing=0"
    assert planned(f"{name}:{loose}", OLD, NEW).rotate
    plain = planned(f"{name}:{loose},rotate=no", OLD, NEW)
    assert plain.moved > 0
    assert not plain.rotate


@pytest.mark.parametrize("name", ["suffix-naive", "segmented-naive"])
def test_a_naive_strategy_keeps_whatever_it_finds_as_it_is(name: str) -> None:
    pieces = [tool(700, 1), tool(900, 2), message(5000, 3)]
    old = request(system(10, 4), *pieces)
    new = request(system(4000, 5), *pieces, message(9, 6))
    plan = planned(name, old, new)
    # The message does not end with a block, so not all of it is stored.
    assert plan.moved >= (6500 if name == "suffix-naive" else 1600)
    assert {span.shift for span in plan.spans} == {3990}
    assert (plan.rotate, plan.recompute) == (False, 0)
    first, _ = plan.gaps
    assert first in {(0, 4002), (0, 4004)}


@BOTH
def test_a_tail_is_fresh_even_where_nothing_moves(name: str) -> None:
    strategy = make(f"{name}:{LOOSE.replace('tail=1', 'tail=9')}")
    asked = request(system(9, 1), tool(40, 2))
    strategy.commit(request(system(7, 3), tool(40, 2)).prompt, Plan(51))
    plan = strategy.plan(asked.prompt)
    assert plan.moved > 0
    strategy.commit(asked.prompt, plan)
    again = strategy.plan(asked.prompt)
    assert again.moved == 0
    assert again.reused == (len(asked.ids) - 9) // 4 * 4


@BOTH
def test_cached_sequences_go_with_their_blocks(name: str) -> None:
    strategy = make(f"{name}:{LOOSE},capacity=80")
    ledger = Ledger(lambda store: store.tokens <= 80, block=4)
    ledger.exchange(strategy, request(system(7, 1), tool(60, 2)))
    ledger.exchange(strategy, request(message(60, 3)))
    (cut, new) = strategy._cached
    assert (cut.stored, new.stored) == (20, 60)
    assert len(cut.tokens) == 24
    ledger.exchange(strategy, request(message(78, 4)))
    assert [cached.stored for cached in strategy._cached] == [80]


@BOTH
def test_a_sequence_that_is_reused_outlives_one_that_does_not(name: str) -> None:
    spec = f"{name}:{LOOSE.replace('run=4', 'run=20')},sequences=2"
    strategy, ledger = make(spec), Ledger(block=4)
    ledger.exchange(strategy, request(system(7, 1), tool(60, 2)))
    ledger.exchange(strategy, request(system(7, 3), tool(60, 4)))
    ledger.exchange(strategy, request(system(8, 5), tool(60, 2)))
    ledger.exchange(strategy, request(system(7, 6), tool(60, 7)))
    given, _ = ledger.exchange(strategy, request(system(9, 8), tool(60, 2)))
    gone, _ = ledger.exchange(strategy, request(system(9, 9), tool(60, 4)))
    assert given.moved > 0
    assert gone.moved == 0


@BOTH
def test_a_sequence_that_covers_another_outlives_one_that_does_not(name: str) -> None:
    strategy, ledger = make(f"{name}:{LOOSE},sequences=2"), Ledger(block=4)
    ledger.exchange(strategy, request(tool(60, 1), message(9, 2)))
    ledger.exchange(strategy, request(tool(60, 3)))
    ledger.exchange(strategy, request(tool(60, 1)))
    ledger.exchange(strategy, request(tool(60, 4)))
    plan, _ = ledger.exchange(strategy, request(system(9, 5), tool(60, 1)))
    assert plan.moved > 0


def test_a_longer_sequence_takes_the_place_of_its_beginning() -> None:
    strategy, ledger = make(f"suffix:{LOOSE}"), Ledger(block=4)
    for length in (20, 40, 30):
        ledger.exchange(strategy, request(Piece("messages", text(40, 1)[:length])))
    assert [cached.stored for cached in strategy._cached] == [40]


@BOTH
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("run=0", "run=0 is not accepted; give a whole number >= 1"),
        ("tail=0", "tail=0 is not accepted; give a whole number >= 1"),
        ("sequences=0", "sequences=0 is not accepted; give a whole number >= 1"),
        ("head=few", "head='few' is not accepted; give a whole number >= 0"),
        ("shift=none", "shift='none' is not accepted; give a whole number >= 0"),
        ("rotate=1", "rotate=1 is not accepted; give one of yes, no"),
        ("rotate=maybe", "rotate='maybe' is not accepted; give one of yes, no"),
        ("selection=last", "give one of first, random, deviation, attention"),
        ("recompute=101", "recompute=101 is not accepted; give a percentage up to 100"),
        (
            "gap=1",
            "no parameter 'gap'; accepted: block, capacity, evict, sequences",
        ),
    ],
)
def test_a_bad_limit_is_told_what_would_do(
    name: str, parameters: str, message: str
) -> None:
    with pytest.raises(StrategyError) as caught:
        parse_strategy(f"{name}:{parameters}")
    assert str(caught.value).startswith(f"{name}: ")
    assert message in str(caught.value)


@BOTH
def test_parameters_make_the_same_strategy_again(name: str) -> None:
    strategy = make(f"{name}:rotate=no,recompute=15,selection=random,shift=0")
    spec = ",".join(f"{key}={value}" for key, value in strategy.parameters.items())
    again = make(f"{name}:{spec}")
    assert again.parameters == strategy.parameters
    assert (again.rotate, again.recompute, again.shift) == ("no", 15, 0)


def test_integrity_notices_wrong_cached_sequences() -> None:
    def stored() -> Approximate:
        strategy = make(f"suffix:{LOOSE}")
        for seed in (1, 2):
            strategy.commit(request(message(20, seed)).prompt, Plan(22))
        strategy.check_integrity()
        return strategy

    twice, other, stale = stored(), stored(), stored()
    twice._cached *= 2
    with pytest.raises(IntegrityError, match="4 cached sequences, 2 of them distinct"):
        twice.check_integrity()
    one = other._cached[0]
    other._cached = [CachedSequence(one.prompt, 24, 4)]
    with pytest.raises(
        IntegrityError, match="of 24 tokens of a cached sequence 20 are resident"
    ):
        other.check_integrity()
    for node in stale._tree:
        node.value.generation = 1
    with pytest.raises(IntegrityError, match="of a generation up to 0"):
        stale.check_integrity()


def test_integrity_notices_an_exact_block_behind_an_approximate_one() -> None:
    strategy = make(f"suffix:{LOOSE}")
    strategy.commit(request(message(20, 1)).prompt, Plan(22))
    strategy.commit(request(message(20, 1), message(20, 2)).prompt, Plan(42))
    next(iter(strategy._tree)).value.generation = 1
    with pytest.raises(IntegrityError, match="is closer to exact than its parent"):
        strategy.check_integrity()
