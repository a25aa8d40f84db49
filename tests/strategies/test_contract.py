"""What every strategy has to do, one row each."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given

from mlxlab.errors import StrategyError
from mlxlab.prompt import Prompt
from mlxlab.strategies import STRATEGIES, Plan, Strategy, parse_strategy
from tests.support.ledger import Ledger, Limit, Request
from tests.support.traffic import DETERMINISTIC, traffic

TOKEN_BYTES = 2


@dataclass(frozen=True)
class Row:
    """A strategy made small enough to evict, and what its store may hold."""

    spec: str
    limit: Limit
    block: int = 1
    slots: int = 0

    def in_use(self, count: int) -> str:
        """What a MISS says of slots; nothing if the strategy has none."""
        return f", {count} of {self.slots} slots in use" if self.slots else ""

    def make(self) -> Strategy:
        return parse_strategy(self.spec, token_bytes=TOKEN_BYTES)

    def store(self) -> Ledger:
        return Ledger(self.limit, block=self.block)


def moving(name: str, *limits: str) -> Row:
    spec = f"{name}:{','.join(['block=4', 'capacity=90', *limits])}"
    return Row(spec, lambda store: store.tokens * TOKEN_BYTES <= 90, 4)


ROWS = {
    "none": Row("none", lambda store: not store.held),
    "prefix": Row(
        "prefix:capacity=60",
        lambda store: len(store.held) <= 1 and store.tokens * TOKEN_BYTES <= 60,
        slots=1,
    ),
    "static-prefix": Row(
        "static-prefix:slots=2,capacity=90",
        lambda store: len(store.held) <= 4 and store.tokens * TOKEN_BYTES <= 90,
        slots=2,
    ),
    "block-hash": Row(
        "block-hash:block=4,slots=2,minimum=8,capacity=90",
        lambda store: len(store.held) <= 2 and store.tokens * TOKEN_BYTES <= 90,
        4,
        slots=2,
    ),
    "paged": Row(
        "paged:block=4,capacity=90", lambda store: store.tokens * TOKEN_BYTES <= 90, 4
    ),
    "mlx-lm": Row(
        "mlx-lm:max_size=3,capacity=120",
        lambda store: len(store.held) <= 3 and store.tokens * TOKEN_BYTES <= 120,
        slots=3,
    ),
    "suffix": moving("suffix", "run=4,head=1,tail=1,rewritten=0"),
    "suffix-naive": moving("suffix-naive"),
    "segmented": moving("segmented", "run=2,head=1,tail=1,rewritten=0"),
    "segmented-naive": moving("segmented-naive"),
}

every_strategy = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def test_every_strategy_has_a_row() -> None:
    assert list(ROWS) == list(STRATEGIES)
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())
    assert all(strategy.summary for strategy in STRATEGIES.values())


@every_strategy
def test_plans_and_commits_agree_with_a_store(row: Row) -> None:
    seen: Counter[str] = Counter()

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, ledger = row.make(), row.store()
        for request in requests:
            plan, commit = ledger.exchange(strategy, request)
            seen["hit"] += plan.reused > 0
            seen["eviction"] += commit.evicted > 0
            seen["request"] += 1

    check()
    if row.spec != "none":
        assert seen["hit"] > seen["request"] / 4
        assert seen["eviction"] > seen["request"] / 20


@every_strategy
def test_the_same_requests_give_the_same_answers(row: Row) -> None:
    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        def answers() -> list[object]:
            strategy, ledger = row.make(), row.store()
            return [ledger.exchange(strategy, request) for request in requests]

        assert answers() == answers()

    check()


@every_strategy
def test_planning_changes_nothing(row: Row) -> None:
    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        planned, quiet = row.make(), row.make()
        for request in requests:
            for other in requests:
                planned.plan(other.prompt)
            plan = planned.plan(request.prompt)
            assert plan == quiet.plan(request.prompt)
            assert planned.commit(request.sequence, plan) == quiet.commit(
                request.sequence, plan
            )

    check()


@every_strategy
def test_a_repeated_prompt_leaves_its_last_token_open(row: Row) -> None:
    strategy, ledger = row.make(), row.store()
    for length in (1, 2, 9, 12, 13):
        request = Request([length] * length)
        ledger.exchange(strategy, request)
        plan, _ = ledger.exchange(strategy, request)
        assert max(gap[1] for gap in plan.gaps) == length


@every_strategy
def test_logs_a_hit_or_a_miss(row: Row, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mlxlab")
    strategy, ledger = row.make(), row.store()
    request = Request([1, 2, 0] * 6)
    for _ in range(2):
        plan, _ = ledger.exchange(strategy, request)
    miss, last = (record.getMessage() for record in caplog.records)
    slots = row.in_use(0)
    assert miss == f"Cache MISS: computing 18 tokens (best match was 0 tokens{slots})"
    if plan.reused:
        expected = rf"Cache HIT: reusing {plan.reused}/18 tokens \(\d+\.\d% cached\)"
        assert re.fullmatch(expected, last)
    else:
        assert last == miss


@every_strategy
def test_a_miss_says_how_many_slots_are_in_use(
    row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mlxlab")
    strategy, ledger = row.make(), row.store()
    for number in range(4):
        request = Request([3 * number + token for token in (1, 2, 3)] * 4, static=4)
        plan, _ = ledger.exchange(strategy, request)
        assert plan.reused == 0
    says = [record.getMessage() for record in caplog.records]
    assert says == [
        "Cache MISS: computing 12 tokens (best match was 0 tokens"
        f"{row.in_use(min(number, row.slots))})"
        for number in range(4)
    ]
    expected = (row.slots, row.slots) if row.slots else None
    assert strategy.occupancy == expected


@every_strategy
def test_an_empty_sequence_changes_nothing(row: Row) -> None:
    strategy, ledger = row.make(), row.store()
    ledger.exchange(strategy, Request([1, 2, 0] * 6))
    held = strategy.stored_tokens
    commit = strategy.commit(Prompt.of([]), Plan(1))
    assert (commit.drop, commit.put, commit.evicted) == ((), (), 0)
    assert strategy.stored_tokens == held
    strategy.check_integrity()


@every_strategy
def test_an_empty_prompt_has_no_plan(row: Row) -> None:
    with pytest.raises(StrategyError, match="an empty prompt has no plan"):
        row.make().plan(Prompt.of([]))


@every_strategy
def test_what_is_kept_can_be_restored(row: Row) -> None:
    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy = row.make()
        for i, request in enumerate(requests):
            computed = request.sequence
            strategy.commit(computed, strategy.plan(request.prompt))
            longer = Prompt.of([*computed.tokens.tolist(), 10**6])
            kept = strategy.restorable_after(len(computed))
            reused = strategy.plan(longer).reused
            assert reused == kept if i == 0 else reused >= kept

    check()
