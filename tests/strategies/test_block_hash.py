from __future__ import annotations

import pytest

from mlxlab.errors import IntegrityError
from mlxlab.strategies import Commit, Plan, Put, Span
from mlxlab.strategies.block_hash import BlockHash
from tests.support.ledger import Ledger, Request


def run(token: int, length: int) -> list[int]:
    return [token] * length


def test_reuse_below_the_minimum_is_a_miss_that_tells_how_much_there_was() -> None:
    strategy, ledger = BlockHash(), Ledger(block=256)
    ledger.exchange(strategy, Request(run(1, 511) + run(2, 300)))
    plan, _ = ledger.exchange(strategy, Request(run(1, 511) + run(3, 300)))
    assert plan == Plan(811, best_match=256)


def test_reuse_of_the_minimum_is_a_hit() -> None:
    strategy, ledger = BlockHash(), Ledger(block=256)
    ledger.exchange(strategy, Request(run(1, 512) + run(2, 300)))
    plan, _ = ledger.exchange(strategy, Request(run(1, 512) + run(3, 300)))
    assert plan == Plan(812, (Span(1, 0, 0, 512),), 512)


def test_an_extension_takes_the_slot() -> None:
    strategy, ledger = BlockHash(block=4, minimum=4), Ledger(block=4)
    ledger.exchange(strategy, Request(run(1, 10)))
    _, commit = ledger.exchange(strategy, Request(run(1, 13)))
    assert commit == Commit(drop=(1,), put=(Put(2, 0, 12),))


def test_a_divergence_takes_a_new_slot() -> None:
    strategy, ledger = BlockHash(block=4, minimum=4), Ledger(block=4)
    ledger.exchange(strategy, Request(run(1, 12)))
    _, commit = ledger.exchange(strategy, Request(run(1, 8) + run(2, 4)))
    assert commit == Commit(put=(Put(2, 0, 12),))


def test_a_covered_sequence_is_not_stored_again() -> None:
    strategy, ledger = BlockHash(block=4, minimum=4), Ledger(block=4)
    ledger.exchange(strategy, Request(run(1, 12)))
    _, commit = ledger.exchange(strategy, Request(run(1, 9)))
    assert commit == Commit()


def test_a_sequence_below_the_minimum_takes_no_slot() -> None:
    strategy, ledger = BlockHash(), Ledger(block=256)
    _, commit = ledger.exchange(strategy, Request(run(1, 511)))
    assert commit == Commit()


def test_a_used_slot_outlives_an_unused_one() -> None:
    strategy, ledger = BlockHash(block=4, slots=2, minimum=4), Ledger(block=4)
    ledger.exchange(strategy, Request(run(1, 12)))
    ledger.exchange(strategy, Request(run(2, 12)))
    _, commit = ledger.exchange(strategy, Request(run(1, 8) + run(3, 4)))
    assert commit == Commit(drop=(2,), put=(Put(3, 0, 12),), evicted=12)


def test_a_slot_that_covers_a_sequence_counts_as_used() -> None:
    strategy, ledger = BlockHash(block=4, slots=2, minimum=4), Ledger(block=4)
    ledger.exchange(strategy, Request(run(1, 8)))
    ledger.exchange(strategy, Request(run(1, 4) + run(2, 4)))
    # With the last token open both slots match alike, and the plan takes the second.
    plan, _ = ledger.exchange(strategy, Request(run(1, 8)))
    _, commit = ledger.exchange(strategy, Request(run(3, 8)))
    assert plan.spans == (Span(2, 0, 0, 4),)
    assert commit.drop == (2,)


def test_eviction_counts_only_what_no_slot_covers() -> None:
    strategy, ledger = BlockHash(block=4, slots=2, minimum=4), Ledger(block=4)
    ledger.exchange(strategy, Request(run(1, 8) + run(2, 8)))
    ledger.exchange(strategy, Request(run(1, 8) + run(3, 4)))
    _, commit = ledger.exchange(strategy, Request(run(4, 8)))
    assert commit == Commit(drop=(1,), put=(Put(3, 0, 8),), evicted=8)


def test_among_equals_the_most_recent_slot_is_reused() -> None:
    strategy, ledger = BlockHash(block=4, minimum=4), Ledger(block=4)
    ledger.exchange(strategy, Request(run(1, 8) + run(2, 4)))
    ledger.exchange(strategy, Request(run(1, 8) + run(3, 4)))
    plan, _ = ledger.exchange(strategy, Request(run(1, 8) + run(4, 4)))
    assert plan.spans == (Span(2, 0, 0, 8),)


def test_integrity_notices_a_slot_that_covers_another() -> None:
    strategy, ledger = BlockHash(block=4, minimum=4), Ledger(block=4)
    ledger.exchange(strategy, Request(run(1, 12)))
    slot = strategy._slots[0]
    strategy._slots.insert(0, type(slot)(9, slot.digests[:2], 8))
    with pytest.raises(IntegrityError, match="slot 1 covers slot 9"):
        strategy.check_integrity()
