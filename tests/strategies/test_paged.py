from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlxlab.errors import IntegrityError
from mlxlab.strategies import Commit, Put, Span
from mlxlab.strategies.paged import Paged
from tests.strategies.ledger import Ledger, Request


def pool(blocks: int) -> tuple[Paged, Ledger]:
    """Room for ``blocks`` blocks of two tokens, three bytes each token."""
    capacity = blocks * 2 * 3
    strategy = Paged(block=2, capacity=capacity, token_bytes=3)
    return strategy, Ledger(lambda store: store.tokens * 3 <= capacity, block=2)


def test_sequences_share_the_blocks_of_their_common_prefix() -> None:
    strategy, ledger = pool(9)
    ledger.exchange(strategy, Request([1, 1, 2, 2, 3, 3]))
    plan, commit = ledger.exchange(strategy, Request([1, 1, 2, 2, 4, 4, 5]))
    assert plan.spans == (Span(1, 0, 0, 2), Span(2, 0, 2, 2))
    assert commit == Commit(put=(Put(4, 4, 6),))


def test_the_least_recent_leaf_goes_first_and_roots_last() -> None:
    strategy, ledger = pool(6)
    ledger.exchange(strategy, Request([1, 1, 2, 2, 3, 3]))  # blocks 1, 2, 3
    ledger.exchange(strategy, Request([5, 5, 6, 6]))  # blocks 4, 5
    _, one = ledger.exchange(strategy, Request([7, 7, 8, 8]))
    _, two = ledger.exchange(strategy, Request([9, 9, 9, 9, 9, 9]))
    assert one.drop == (3,)
    assert two.drop == (2, 1, 5)
    assert two.evicted == 6


def test_a_shared_root_stays_as_long_as_one_branch_is_used() -> None:
    strategy, ledger = pool(4)
    ledger.exchange(strategy, Request([1, 1, 2, 2]))
    ledger.exchange(strategy, Request([1, 1, 3, 3]))
    ledger.exchange(strategy, Request([4, 4]))
    _, commit = ledger.exchange(strategy, Request([1, 1, 5, 5]))
    assert commit.drop == (2,)


def test_a_chain_longer_than_the_pool_keeps_its_head() -> None:
    strategy, ledger = pool(2)
    ledger.exchange(strategy, Request([9, 9, 8, 8]))
    _, commit = ledger.exchange(strategy, Request([1, 1, 2, 2, 3, 3]))
    assert commit == Commit((2, 1), (Put(3, 0, 2), Put(4, 2, 4)), 4)
    plan, commit = ledger.exchange(strategy, Request([1, 1, 2, 2, 3, 3]))
    assert plan.reused == 4
    assert commit == Commit()


def test_a_commit_never_evicts_the_chain_that_it_takes_in() -> None:
    strategy, ledger = pool(3)
    ledger.exchange(strategy, Request([1, 1]))
    ledger.exchange(strategy, Request([2, 2, 3, 3]))
    _, commit = ledger.exchange(strategy, Request([1, 1, 4, 4, 5, 5]))
    assert commit == Commit((3, 2), (Put(4, 2, 4), Put(5, 4, 6)), 4)


def test_an_incomplete_block_is_not_stored() -> None:
    strategy, ledger = pool(3)
    _, commit = ledger.exchange(strategy, Request([1, 1, 2]))
    assert commit.put == (Put(1, 0, 2),)


def test_a_capacity_beyond_any_machine_is_no_limit() -> None:
    strategy = Paged(block=1, capacity=1 << 100)
    Ledger().exchange(strategy, Request([1, 2, 3]))
    assert strategy.stored_tokens == 3


@pytest.mark.parametrize(
    ("corruption", "message"),
    [
        (
            lambda block: setattr(block, "references", 2),
            "counts 2 references and has 1",
        ),
        (lambda block: setattr(block, "handle", 2), "a handle names two blocks"),
    ],
)
def test_integrity_notices_wrong_books(
    corruption: Callable[[Any], None], message: str
) -> None:
    strategy, ledger = pool(3)
    ledger.exchange(strategy, Request([1, 1, 2, 2]))
    corruption(next(reversed(strategy._pool.values())))
    with pytest.raises(IntegrityError, match=message):
        strategy.check_integrity()


def test_integrity_notices_a_parent_that_would_go_first() -> None:
    strategy, ledger = pool(3)
    ledger.exchange(strategy, Request([1, 1, 2, 2]))
    strategy._pool.move_to_end(next(iter(strategy._pool)))
    with pytest.raises(IntegrityError, match="block 2 outlives or outranks its parent"):
        strategy.check_integrity()
