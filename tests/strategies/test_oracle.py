"""Every exact strategy against a brute-force search for the longest common prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import given

from mlxlab.strategies import parse_strategy
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC, traffic

History: TypeAlias = list[list[int]]


def shared(a: list[int], b: list[int]) -> int:
    """Tokens in common before the first that differs, one by one."""
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


def last(history: History, ids: list[int]) -> int:
    return shared(history[-1], ids) if history else 0


def best(history: History, ids: list[int]) -> int:
    return max((shared(old, ids) for old in history), default=0)


def best_blocks(history: History, ids: list[int]) -> int:
    return best(history, ids) // 4 * 4


def best_blocks_of_eight(history: History, ids: list[int]) -> int:
    blocks = best_blocks(history, ids)
    return blocks if blocks >= 8 else 0


@pytest.mark.parametrize(
    ("spec", "block", "oracle"),
    [
        ("none", 1, lambda history, ids: 0),
        ("prefix", 1, last),
        ("mlx-lm:max_size=100", 1, best),
        ("block-hash:block=4,slots=100,minimum=1", 4, best_blocks),
        ("block-hash:block=4,slots=100,minimum=8", 4, best_blocks_of_eight),
        ("paged:block=4", 4, best_blocks),
        ("suffix:block=4", 4, best_blocks),
        ("segmented:block=4", 4, best_blocks),
    ],
)
def test_reuses_what_all_past_sequences_allow(
    spec: str, block: int, oracle: Callable[[History, list[int]], int]
) -> None:
    seen: Counter[int] = Counter()

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, ledger = parse_strategy(spec), Ledger(block=block)
        history: History = []
        for request in requests:
            plan, _ = ledger.exchange(strategy, request)
            # The last token is never reused, so the oracle does not get to see it.
            assert plan.reused == oracle(history, request.ids[:-1])
            history.append(request.ids + request.answer)
            seen[plan.reused] += 1

    check()
    assert spec == "none" or seen.total() - seen[0] > seen.total() / 3


def test_static_prefix_reuses_the_latest_sequence_of_every_static_part() -> None:
    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, ledger = parse_strategy("static-prefix:slots=100"), Ledger()
        latest: dict[tuple[int, ...], list[int]] = {}
        for request in requests:
            plan, _ = ledger.exchange(strategy, request)
            assert plan.reused == best(list(latest.values()), request.ids[:-1])
            sequence = request.ids + request.answer
            latest[tuple(sequence[: request.static])] = sequence

    check()


@pytest.mark.parametrize(
    ("spec", "block", "minimum"),
    [
        ("prefix", 1, 1),
        ("static-prefix:slots=2", 1, 1),
        ("prefix:capacity=20", 1, 1),
        ("static-prefix:slots=9,capacity=50", 1, 1),
        ("block-hash:block=4,slots=9,minimum=8,capacity=60", 4, 8),
        ("mlx-lm:max_size=2", 1, 1),
        ("mlx-lm:capacity=60", 1, 1),
        ("block-hash:block=4,slots=2,minimum=8", 4, 8),
        ("paged:block=4,capacity=40", 4, 1),
        ("paged:block=3,capacity=10", 3, 1),
        ("suffix:block=4,capacity=40", 4, 1),
    ],
)
def test_reuses_all_that_is_still_stored(spec: str, block: int, minimum: int) -> None:
    limited: Counter[bool] = Counter()

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, ledger = parse_strategy(spec), Ledger(block=block)
        history: History = []
        for request in requests:
            ids = request.ids[:-1]
            stored = ledger.longest(ids)
            plan, _ = ledger.exchange(strategy, request)
            assert plan.reused == (stored if stored >= minimum else 0)
            assert plan.best_match == stored
            assert plan.reused <= best(history, ids)
            limited[plan.reused < best(history, ids) // block * block] += 1
            history.append(request.ids + request.answer)

    check()
    assert limited[True] > limited.total() / 50
    assert limited[False] > limited.total() / 4
