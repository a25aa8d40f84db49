from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given

from mlxlab.errors import IntegrityError
from mlxlab.strategies import Commit, Cut, Put, Span
from mlxlab.strategies.paged import Paged
from mlxlab.strategies.sequences.hashing import chained_digests
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC, traffic


def pool(blocks: int) -> tuple[Paged, Ledger]:
    """Room for ``blocks`` blocks of two tokens, three bytes each token."""
    capacity = blocks * 2 * 3
    strategy = Paged(block=2, capacity=capacity, token_bytes=3)
    return strategy, Ledger(lambda store: store.tokens * 3 <= capacity, block=2)


def test_sequences_share_the_blocks_of_their_common_prefix() -> None:
    strategy, ledger = pool(9)
    ledger.exchange(strategy, Request([1, 1, 2, 2, 3, 3]))
    plan, commit = ledger.exchange(strategy, Request([1, 1, 2, 2, 4, 4, 5]))
    assert plan.spans == (Span(1, 0, 0, 4),)
    assert commit == Commit(put=(Put(2, 4, 6),))


def test_the_least_recent_leaf_goes_first_and_roots_last() -> None:
    strategy, ledger = pool(6)
    ledger.exchange(strategy, Request([1, 1, 2, 2, 3, 3]))
    ledger.exchange(strategy, Request([5, 5, 6, 6]))
    _, one = ledger.exchange(strategy, Request([7, 7, 8, 8]))
    _, two = ledger.exchange(strategy, Request([9, 9, 9, 9, 9, 9]))
    assert one == Commit(cut=(Cut(1, 0, 4),), put=(Put(3, 0, 4),), evicted=2)
    assert (two.drop, two.cut, two.evicted) == ((1,), (Cut(2, 0, 2),), 6)


def test_a_shared_root_stays_as_long_as_one_branch_is_used() -> None:
    strategy, ledger = pool(4)
    ledger.exchange(strategy, Request([1, 1, 2, 2]))
    ledger.exchange(strategy, Request([1, 1, 3, 3]))
    ledger.exchange(strategy, Request([4, 4]))
    _, commit = ledger.exchange(strategy, Request([1, 1, 5, 5]))
    assert (commit.drop, commit.cut) == ((), (Cut(1, 0, 2),))


def test_a_sequence_longer_than_the_pool_keeps_its_head() -> None:
    strategy, ledger = pool(2)
    ledger.exchange(strategy, Request([9, 9, 8, 8]))
    _, commit = ledger.exchange(strategy, Request([1, 1, 2, 2, 3, 3]))
    assert commit == Commit(drop=(1,), put=(Put(2, 0, 4),), evicted=4)
    plan, commit = ledger.exchange(strategy, Request([1, 1, 2, 2, 3, 3]))
    assert plan.reused == 4
    assert commit == Commit()


def test_a_commit_never_evicts_the_path_that_it_takes_in() -> None:
    strategy, ledger = pool(3)
    ledger.exchange(strategy, Request([1, 1]))
    ledger.exchange(strategy, Request([2, 2, 3, 3]))
    _, commit = ledger.exchange(strategy, Request([1, 1, 4, 4, 5, 5]))
    assert commit == Commit(drop=(2,), put=(Put(3, 2, 6),), evicted=4)


def test_whole_nodes_give_what_single_blocks_would() -> None:
    """Blocks one by one, least recent first, children before parents."""
    seen = Counter[str]()

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy = Paged(block=2, capacity=20)
        blocks: OrderedDict[bytes, None] = OrderedDict()
        for request in requests:
            plan = strategy.plan(request.prompt)
            asked = chained_digests(request.prompt.tokens[:-1], 2)
            resident = sum(1 for _ in takewhile(blocks.__contains__, asked))
            assert plan.reused == resident * 2
            commit = strategy.commit(request.sequence, plan)
            chain = list(chained_digests(request.sequence.tokens[:20], 2))
            for digest in reversed(chain):
                blocks[digest] = None
                blocks.move_to_end(digest)
            gone = max(len(blocks) - 10, 0)
            for _ in range(gone):
                blocks.popitem(last=False)
            assert commit.evicted == gone * 2
            seen["hits"] += plan.reused > 0
            seen["evictions"] += gone > 0

    check()
    assert min(seen["hits"], seen["evictions"]) > 50


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
        (lambda stored: setattr(stored, "stop", 9), "handles and nodes disagree"),
        (lambda stored: setattr(stored, "handle", 1), "handles and nodes disagree"),
        (lambda stored: setattr(stored, "generation", -1), "closer to exact than its"),
    ],
)
def test_integrity_notices_wrong_books(
    corruption: Callable[[Any], None], message: str
) -> None:
    strategy, ledger = pool(3)
    ledger.exchange(strategy, Request([1, 1]))
    ledger.exchange(strategy, Request([1, 1, 2, 2]))
    corruption(list(strategy._tree)[-1].value)
    with pytest.raises(IntegrityError, match=message):
        strategy.check_integrity()


def test_integrity_notices_a_node_that_is_not_booked() -> None:
    strategy, ledger = pool(3)
    ledger.exchange(strategy, Request([1, 1, 2, 2]))
    for entry in list(strategy.eviction.entries):
        strategy.eviction.discard(entry)
    with pytest.raises(IntegrityError, match="4 tokens in 1 nodes where 4 in 0 are"):
        strategy.check_integrity()


def test_integrity_notices_a_parent_that_would_go_first() -> None:
    strategy, ledger = pool(3)
    ledger.exchange(strategy, Request([1, 1]))
    ledger.exchange(strategy, Request([1, 1, 2, 2]))
    strategy.eviction.touch([next(iter(strategy.eviction.entries))])
    with pytest.raises(IntegrityError, match="is more recent than its parent"):
        strategy.check_integrity()
