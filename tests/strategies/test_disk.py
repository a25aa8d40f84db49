"""The disk's policy behind every exact strategy, and by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.errors import StrategyError
from mlxlab.prompt import Prompt
from mlxlab.strategies import Disk, Plan, Record, Tier, parse_strategy
from tests.strategies.test_contract import ON_DISK, Row
from tests.support.ledger import Request
from tests.support.traffic import DETERMINISTIC, traffic

every_disk = pytest.mark.parametrize("row", ON_DISK.values(), ids=ON_DISK)


@every_disk
def test_memory_decides_the_same_with_and_without_a_disk(row: Row) -> None:
    if row.checkpoint_bytes:
        pytest.skip("a checkpoint that was loaded is kept in memory")

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, alone = row.make(), replace(row, disk=0).make()
        for request in requests:
            plan, own = strategy.plan(request.prompt), alone.plan(request.prompt)
            assert plan.in_memory.spans == own.spans
            commit = strategy.commit(request.sequence, plan)
            expected = alone.commit(request.sequence, own)
            assert replace(commit, disk=expected.disk) == expected

    check()


@every_disk
def test_a_disk_that_is_loaded_again_holds_the_same(row: Row) -> None:
    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, ledger = row.make(), row.store()
        records: dict[int, Record] = {}
        half = len(requests) // 2
        for request in requests[:half]:
            _, commit = ledger.exchange(strategy, request)
            for handle in commit.disk.erase:
                del records[handle]
            for handle in commit.disk.used:
                records[handle] = replace(records[handle], used=commit.disk.number)
            records |= {record.handle: record for record in commit.disk.write}
        restarted = row.make()
        assert strategy.tier is not None
        assert restarted.tier is not None
        assert restarted.tier.load(records.values()).erase == ()
        restarted.check_integrity()
        assert restarted.tier.nbytes == strategy.tier.nbytes
        for request in requests[half:]:
            before = strategy.tier.extend(request.prompt, Plan(len(request.prompt)))
            after = restarted.tier.extend(request.prompt, Plan(len(request.prompt)))
            assert before == after
            changed = strategy.tier.store(request.sequence.tokens, before)
            assert changed == restarted.tier.store(request.sequence.tokens, after)

    check()


@every_disk
def test_what_is_lost_takes_with_it_what_depends_on_it(row: Row) -> None:
    @DETERMINISTIC
    @given(requests=traffic(), data=st.data())
    def check(requests: list[Request], data: st.DataObject) -> None:
        strategy, ledger = row.make(), row.store()
        assert strategy.tier is not None
        for request in requests:
            if len(ledger.disk) > 0 and data.draw(st.booleans()):
                held = sorted(ledger.disk.keys() | ledger.disk_checkpoints.keys())
                lost = data.draw(st.sampled_from(held))
                gone = strategy.tier.lose(lost).erase
                assert gone[-1] == lost
                for handle in gone:
                    ledger.disk.pop(handle, None)
                    ledger.disk_checkpoints.pop(handle, None)
                assert strategy.tier.lose(lost).erase == ()
                strategy.check_integrity()
            ledger.exchange(strategy, request)

    check()


def test_an_approximate_strategy_has_no_disk() -> None:
    with pytest.raises(StrategyError, match="disk=1GiB: only exact keys"):
        parse_strategy("suffix:disk=1GiB")


def test_a_disk_that_holds_nothing_is_refused() -> None:
    with pytest.raises(StrategyError, match="disk=1MiB holds nothing of this model"):
        parse_strategy("paged:disk=1MiB")


def test_the_disk_shows_in_parameters_only_where_there_is_one() -> None:
    assert "disk" not in parse_strategy("paged").parameters
    assert parse_strategy("paged:disk=2GiB").parameters["disk"] == 2 << 30


def test_only_what_is_worth_loading_is_loaded() -> None:
    disk = Disk(10**7, 2, least=8)
    disk.store(Prompt.of(range(100)).tokens, Plan(100))

    def loaded(tokens: int) -> int:
        return disk.extend(Prompt.of([*range(tokens), -1]), Plan(tokens + 1)).reused

    assert [loaded(7), loaded(8), loaded(100)] == [0, 8, 100]
    disk.pays = lambda start, stop: (start, stop) == (0, 100)
    assert [loaded(8), loaded(100)] == [0, 100]


def test_a_sequence_larger_than_the_disk_keeps_its_head() -> None:
    disk = Disk(10 + 3 * (4 * 6 + 3), 2, segment=4, least=1, overhead=3, index=10)
    commit = disk.store(Prompt.of(range(100)).tokens, Plan(100))
    assert [(r.start, r.stop) for r in commit.write] == [(0, 4), (4, 8), (8, 12)]
    plan = disk.extend(Prompt.of(range(100)), Plan(100))
    assert plan.reused == plan.disk_tokens == 12
    assert {span.tier for span in plan.spans} == {Tier.DISK}


def test_the_least_recent_conversation_goes_first_from_its_end() -> None:
    disk = Disk(10 + 4 * (4 * 6 + 3), 2, segment=4, least=1, overhead=3, index=10)
    old, new = Prompt.of(range(8)).tokens, Prompt.of(range(50, 58)).tokens
    first = disk.store(old, Plan(8))
    disk.store(new, Plan(8))
    third = disk.store(Prompt.of(range(90, 94)).tokens, Plan(4))
    assert third.erase == (first.write[1].handle,)
    disk.check()


def test_a_smaller_budget_erases_what_it_has_no_room_for() -> None:
    disk = Disk(10**6, 2, segment=4, least=1, overhead=3, index=10)
    written = disk.store(Prompt.of(range(12)).tokens, Plan(12)).write
    assert disk.resize(10 + 27).erase == (written[2].handle, written[1].handle)
    assert disk.nbytes == 37


def test_records_without_their_parents_are_erased() -> None:
    disk = Disk(10**6, 2, segment=4, least=1, overhead=3, index=10)
    first, *rest = disk.store(Prompt.of(range(12)).tokens, Plan(12)).write
    other = Disk(10**6, 2, segment=4, least=1, overhead=3, index=10)
    assert other.load(rest).erase == tuple(record.handle for record in rest)
    assert other.load([first]).erase == ()
    assert other.nbytes == 37
