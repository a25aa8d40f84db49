"""A policy may give up what has just been stored: the books of every strategy hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given

from mlxlab.prompt import Prompt
from mlxlab.strategies import STRATEGIES, Strategy
from mlxlab.strategies.eviction import MayGo
from mlxlab.strategies.eviction.lru import LeastRecent
from mlxlab.strategies.use import Use
from tests.strategies.test_contract import ON_DISK, RESUMED, ROWS, Row
from tests.support.ledger import Request
from tests.support.traffic import DETERMINISTIC, traffic


class Newest(LeastRecent):
    """Gives up the newest first: the opposite of the default."""

    def choose(self, may_go: MayGo) -> Any:
        return next(entry for entry in reversed(self._order) if may_go(entry))

    def check(self, parents: Mapping[Any, Any]) -> None:
        """Nothing is relied on."""


EVICTING = {
    name: row
    for name, row in (ROWS | RESUMED | ON_DISK).items()
    if "evict" in row.policy.declared
}
every_evicting = pytest.mark.parametrize("row", EVICTING.values(), ids=EVICTING)


def newest_first(row: Row) -> Strategy:
    strategy = row.make()
    strategy.eviction = Newest()
    return strategy


def test_strategies_that_choose_among_sequences_take_a_policy() -> None:
    fixed = {"none", "prefix", "mlx-lm"}
    taking = {name for name, own in STRATEGIES.items() if "evict" in own.declared}
    assert taking == STRATEGIES.keys() - fixed


@every_evicting
def test_the_newest_may_go_first(row: Row) -> None:
    seen: Counter[str] = Counter()

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, ledger = newest_first(row), row.store()
        for request in requests:
            ledger.exchange(strategy, request)
            computed = request.sequence.tokens.tolist()
            again = strategy.preview(Prompt.of([*computed, 10**6]))
            whole = strategy.restorable_after(len(computed))
            seen["refused"] += again.reused < whole
            seen["request"] += 1

    check()
    if not row.disk:
        assert seen["refused"] > seen["request"] / 50


@every_evicting
def test_what_is_in_use_stays(row: Row) -> None:
    if row.checkpoint_bytes:
        pytest.skip("checkpoints have an order of their own")

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy = newest_first(row)
        for request in requests:
            computed = request.sequence
            plan = strategy.plan(request.prompt)
            strategy.commit(computed, plan, Use(running=True))
            longer = Prompt.of([*computed.tokens.tolist(), 10**6])
            assert strategy.plan(longer).reused >= strategy.restorable_after(
                len(computed)
            )

    check()
