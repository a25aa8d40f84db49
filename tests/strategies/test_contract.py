"""The contract: properties of every registered strategy, by its own example."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.errors import StrategyError
from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt
from mlxlab.replay.specs import StrategySpec
from mlxlab.strategies import STRATEGIES, Disk, Limit, Plan, Strategy
from tests.support.ledger import Bound, Ledger, Request
from tests.support.traffic import DETERMINISTIC, traffic

TOKEN_BYTES = 2
#: A small disk: four ids a segment, and three bytes beside the arrays of each file.
DISK, SEGMENT, OVERHEAD, INDEX = 300, 4, 3, 10


@dataclass(frozen=True)
class Row:
    """A strategy made small enough to evict, by its own example."""

    policy: type[Strategy]
    checkpoint_bytes: int = 0
    disk: int = 0

    def in_use(self, count: int) -> str:
        """Return the part of a MISS about slots, empty for a strategy without."""
        slots = self.policy.example.slots
        return f", {count} of {slots} slots in use" if slots else ""

    def make(self) -> Strategy:
        given = dict(self.policy.example.parameters)
        if self.checkpoint_bytes:  # a block means nothing then
            given.pop(self.policy.limits.get(Limit.BLOCK, ""), None)
        layout = CacheLayout.plain(TOKEN_BYTES, self.checkpoint_bytes)
        strategy = StrategySpec(self.policy, given).make(layout)
        if self.disk:
            strategy.tier = Disk(
                self.disk,
                TOKEN_BYTES,
                self.checkpoint_bytes,
                segment=SEGMENT,
                least=1,
                overhead=OVERHEAD,
                index=INDEX,
            )
        return strategy

    def store(self) -> Ledger:
        strategy = self.make()
        block = self.policy.limits.get(Limit.BLOCK)
        return Ledger(
            bound(
                self.policy.example.handles,
                strategy.capacity,
                self.checkpoint_bytes,
                self.disk,
            ),
            block=int(strategy.parameters[block]) if block else 1,
        )


def bound(
    handles: int | None, capacity: int, checkpoint_bytes: int, disk: int = 0
) -> Bound:
    """What the store may hold after every single change."""

    def holds(store: Ledger) -> bool:
        few = handles is None or len(store.held) <= handles
        held = len(store.checkpoints) * checkpoint_bytes
        written = sum(len(h.ids) for h in store.disk.values()) * (TOKEN_BYTES + 4)
        written += len(store.disk) * OVERHEAD + INDEX
        written += len(store.disk_checkpoints) * (checkpoint_bytes + OVERHEAD)
        within = written <= disk if disk else not store.disk
        return few and within and store.tokens * TOKEN_BYTES + held <= capacity

    return holds


ROWS = {name: Row(policy) for name, policy in STRATEGIES.items()}

#: The same for a model that can be resumed at checkpoints only.
RESUMED = {
    f"{name}-resumed": Row(policy, checkpoint_bytes=6)
    for name, policy in STRATEGIES.items()
    if policy.exact
}

#: Both with a disk behind them.
ON_DISK = {
    f"{name}-disk": replace(row, disk=DISK)
    for name, row in (ROWS | RESUMED).items()
    if row.policy.exact
}

every_strategy = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
_ALL = ROWS | RESUMED | ON_DISK
every_model = pytest.mark.parametrize("row", _ALL.values(), ids=_ALL)


def test_every_strategy_describes_itself() -> None:
    for name, policy in STRATEGIES.items():
        assert policy.name == name
        assert policy.summary
        assert policy.literature
        limited = set(policy.limits.values())
        assert policy.example.parameters.keys() >= limited
        if slots := policy.limits.get(Limit.SLOTS):
            assert policy.example.slots == policy.example.parameters[slots]
        if Limit.CAPACITY not in policy.limits:
            assert policy.example.handles == 0


@every_model
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
            seen["loaded"] += plan.disk_tokens > 0
            seen["erased"] += len(commit.disk.erase) > 0

    check()
    assert (seen["loaded"] > seen["request"] / 30) == (row.disk > 0)
    assert (seen["erased"] > 0) == (row.disk > 0)
    if row.policy.example.handles != 0:
        assert seen["hit"] > seen["request"] / (8 if row.checkpoint_bytes else 4)
        assert seen["eviction"] > seen["request"] / 20


@every_model
def test_plans_and_commits_may_alternate_in_any_order(row: Row) -> None:
    @DETERMINISTIC
    @given(requests=traffic(), data=st.data())
    def check(requests: list[Request], data: st.DataObject) -> None:
        strategy, ledger = row.make(), row.store()
        begun: list[tuple[Request, Plan]] = []
        for request in requests:
            begun.append((request, ledger.plan(strategy, request)))
            while len(begun) > 0 and data.draw(st.booleans()):
                some = data.draw(st.integers(0, len(begun) - 1))
                ledger.commit(strategy, *begun.pop(some))
        for request, plan in begun:
            ledger.commit(strategy, request, plan)

    check()


@every_model
def test_the_same_requests_give_the_same_answers(row: Row) -> None:
    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        def answers() -> list[object]:
            strategy, ledger = row.make(), row.store()
            return [ledger.exchange(strategy, request) for request in requests]

        assert answers() == answers()

    check()


@every_model
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


@every_model
def test_a_repeated_prompt_leaves_its_last_token_open(row: Row) -> None:
    strategy, ledger = row.make(), row.store()
    for length in (1, 2, 9, 12, 13):
        request = Request([length] * length)
        ledger.exchange(strategy, request)
        plan, _ = ledger.exchange(strategy, request)
        assert max(gap[1] for gap in plan.gaps) == length


@every_model
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
        f"{row.in_use(min(number, row.policy.example.slots))})"
        for number in range(4)
    ]
    slots = row.policy.example.slots
    expected = (slots, slots) if slots else None
    assert strategy.occupancy == expected


@every_model
def test_an_empty_sequence_changes_nothing(row: Row) -> None:
    strategy, ledger = row.make(), row.store()
    ledger.exchange(strategy, Request([1, 2, 0] * 6))
    held = strategy.stored_tokens
    commit = strategy.commit(Prompt.of([]), Plan(1))
    assert (commit.drop, commit.put, commit.evicted) == ((), (), 0)
    assert strategy.stored_tokens == held
    strategy.check_integrity()


@every_model
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


@every_model
def test_a_plan_says_what_of_its_prompt_is_kept(row: Row) -> None:
    if row.policy.name == "mlx-lm" and row.checkpoint_bytes:
        pytest.skip("mlx-lm's cache may drop the end of what it has just got")

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy = row.make()
        for i, request in enumerate(requests):
            prompt = request.prompt
            plan = strategy.plan(prompt)
            kept = strategy.count_kept(plan)
            strategy.commit(prompt, plan)
            longer = Prompt.of([*prompt.tokens.tolist(), 10**6])
            reused = strategy.plan(longer).reused
            assert reused == kept if i == 0 and not row.disk else reused >= kept

    check()
