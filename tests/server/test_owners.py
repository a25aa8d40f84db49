"""Evicted tokens are charged to the request that had stored them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings

from mlxlab.analysis.misses.evictions import block_of
from mlxlab.server.owners import Evicted, Owners
from mlxlab.strategies import Strategy, Tier
from tests.strategies.test_contract import ON_DISK, ROWS, Row
from tests.support.ledger import Request
from tests.support.traffic import DETERMINISTIC, traffic

ALL = {name: row for name, row in (ROWS | ON_DISK).items() if row.policy.exact}


@dataclass(eq=False)
class Engine:
    """Holds a strategy, as an engine does."""

    strategy: Strategy


@pytest.mark.parametrize("row", ALL.values(), ids=ALL)
def test_all_evicted_tokens_are_charged(row: Row) -> None:
    @settings(DETERMINISTIC, max_examples=25)
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, store, owners = row.make(), row.store(), Owners()
        engine: Any = Engine(strategy=strategy)
        block = block_of(strategy)
        stored: dict[int, int] = {}  # prefix id -> request
        for number, request in enumerate(requests, 1):
            before = store.prefixes
            plan, commit = store.exchange(strategy, request)
            found = list(owners.note(engine, number, plan, commit))
            total = Counter[Tier]()
            for gone in found:
                total[gone.tier] += gone.tokens
                assert gone.of is None or gone.of <= number
            assert total[Tier.MEMORY] == commit.evicted
            assert total[Tier.DISK] == commit.disk.evicted
            if strategy.name == "paged":
                lost = before - store.prefixes
                exact = Counter(stored.pop(prefix) for prefix in lost)
                charged = {g.of: g.tokens for g in found if g.tier is Tier.MEMORY}
                assert charged == {of: block * blocks for of, blocks in exact.items()}
            stored |= dict.fromkeys(store.prefixes - before, number)

    check()


def test_a_longer_turn_does_not_evict_its_earlier_one() -> None:
    strategy, owners = ROWS["prefix"].make(), Owners()
    engine: Any = Engine(strategy=strategy)

    def ask(number: int, ids: list[int]) -> list[Evicted]:
        request = Request(ids)
        plan = strategy.plan(request.prompt)
        commit = strategy.commit(request.sequence, plan)
        return list(owners.note(engine, number, plan, commit))

    assert ask(1, [1, 2, 3, 4]) == []
    assert ask(2, [1, 2, 3, 4, 5, 6]) == []
    assert ask(3, [1, 2, 9]) == [Evicted(4, 2, Tier.MEMORY)]


def test_what_an_earlier_server_left_on_disk_has_no_owner() -> None:
    row = ALL["paged-disk"]
    strategy, owners = row.make(), Owners()
    engine: Any = Engine(strategy=strategy)
    gone: list[Evicted] = []
    for number in range(12):
        request = Request([number] * 24)
        plan = strategy.plan(request.prompt)
        commit = strategy.commit(request.sequence, plan)
        if number > 2:  # those before were stored by another server
            gone += owners.note(engine, number, plan, commit)
    of = [own.of for own in gone if own.tier is Tier.DISK]
    assert of[0] is None
    assert of[-1] is not None
