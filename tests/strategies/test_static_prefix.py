from __future__ import annotations

import pytest

from mlxlab.errors import IntegrityError
from mlxlab.strategies import Commit, Put, Span
from mlxlab.strategies.static_prefix import StaticPrefix
from tests.support.ledger import Ledger, Request

STATIC = [1, 2, 3, 4]


def test_a_new_session_replaces_the_history_and_keeps_the_static_part() -> None:
    strategy, ledger = StaticPrefix(), Ledger()
    _, first = ledger.exchange(strategy, Request([*STATIC, 5, 6, 7], [8], static=4))
    plan, second = ledger.exchange(strategy, Request([*STATIC, 9, 9], static=4))
    assert first == Commit(put=(Put(1, 0, 4), Put(2, 4, 8)))
    assert plan.spans == (Span(1, 0, 0, 4),)
    assert second == Commit(drop=(2,), put=(Put(3, 4, 6),), evicted=4)


def test_a_continued_session_reuses_static_part_and_history() -> None:
    strategy, ledger = StaticPrefix(), Ledger()
    ledger.exchange(strategy, Request([*STATIC, 5, 6], [7], static=4))
    plan, commit = ledger.exchange(strategy, Request([*STATIC, 5, 6, 7, 8], static=4))
    assert plan.spans == (Span(1, 0, 0, 4), Span(2, 0, 4, 3))
    assert commit.evicted == 0


def test_part_of_a_foreign_static_part_is_reused() -> None:
    strategy, ledger = StaticPrefix(), Ledger()
    ledger.exchange(strategy, Request([*STATIC, 5], static=4))
    plan, commit = ledger.exchange(strategy, Request([1, 2, 3, 9, 5], static=4))
    assert plan.spans == (Span(1, 0, 0, 3),)
    assert commit.drop == ()


def test_reuse_goes_past_a_shorter_static_part_into_its_history() -> None:
    strategy, ledger = StaticPrefix(), Ledger()
    ledger.exchange(strategy, Request([*STATIC, 5], static=2))
    plan, _ = ledger.exchange(strategy, Request([*STATIC, 6], static=4))
    assert plan.spans == (Span(1, 0, 0, 2), Span(2, 0, 2, 2))


def test_a_prompt_shorter_than_the_static_part_reuses_all_but_one_token() -> None:
    strategy, ledger = StaticPrefix(), Ledger()
    ledger.exchange(strategy, Request([*STATIC, 5], static=4))
    plan, _ = ledger.exchange(strategy, Request(STATIC[:3], static=3))
    assert plan.spans == (Span(1, 0, 0, 2),)


def test_prompts_without_a_static_part_share_one_entry() -> None:
    strategy, ledger = StaticPrefix(slots=2), Ledger()
    ledger.exchange(strategy, Request([*STATIC, 5], static=4))
    ledger.exchange(strategy, Request([7, 8, 9]))
    _, commit = ledger.exchange(strategy, Request([7, 8, 6]))
    assert commit == Commit(drop=(3,), put=(Put(4, 0, 3),), evicted=1)


def test_a_prompt_that_is_all_static_has_no_history() -> None:
    strategy, ledger = StaticPrefix(), Ledger()
    _, commit = ledger.exchange(strategy, Request(STATIC, static=4))
    assert commit.put == (Put(1, 0, 4),)
    _, commit = ledger.exchange(strategy, Request([*STATIC, 5], static=4))
    assert commit == Commit(put=(Put(2, 4, 5),))


def test_the_least_recently_used_entry_goes() -> None:
    strategy, ledger = StaticPrefix(slots=2), Ledger()
    ledger.exchange(strategy, Request([1, 1, 1], static=2))
    ledger.exchange(strategy, Request([2, 2, 2], static=2))
    # Reuses the older entry although it will live in one of its own.
    _, commit = ledger.exchange(strategy, Request([1, 3, 3], static=2))
    assert commit.drop == (3, 4)
    assert commit.evicted == 3


def test_among_equals_the_most_recent_entry_is_reused() -> None:
    strategy, ledger = StaticPrefix(), Ledger()
    ledger.exchange(strategy, Request([1, 2, 3], static=1))
    ledger.exchange(strategy, Request([1, 2, 4], static=2))
    plan, _ = ledger.exchange(strategy, Request([1, 2, 5], static=1))
    assert plan.spans == (Span(3, 0, 0, 2),)


def test_integrity_notices_an_entry_too_many() -> None:
    strategy, ledger = StaticPrefix(), Ledger()
    ledger.exchange(strategy, Request([1, 2, 3], static=1))
    strategy._entries *= 2
    with pytest.raises(IntegrityError, match="2 entries of 1 static parts"):
        strategy.check_integrity()
