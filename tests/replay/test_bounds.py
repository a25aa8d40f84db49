"""No strategy beats its bound, and each bound can be reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from mlxlab.models.layout import CacheLayout
from mlxlab.replay.bounds import (
    UNLIMITED,
    OptimalMemory,
    PositionIndependent,
    UnlimitedMemory,
    find_bounds,
    position_independent,
)
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.workload import HashedSource, Workload
from mlxlab.strategies import parse_strategy
from mlxlab.traces.hashed.weka import Weka
from tests.support.hashes import write_weka
from tests.support.ledger import Request
from tests.support.traffic import DETERMINISTIC, traffic

Kept = frozenset[tuple[int, ...]]


def rendered(requests: Sequence[Request]) -> list[RenderedRequest]:
    return [
        RenderedRequest("s", i, r.prompt, np.array([*r.answer, 9], np.int32))
        for i, r in enumerate(requests)
    ]


@pytest.mark.parametrize(
    "spec",
    [
        "prefix",
        "static-prefix",
        "paged:block=1",
        "paged:block=3",
        "mlx-lm",
        "block-hash:block=2,minimum=2",
    ],
)
def test_no_exact_strategy_reuses_more_than_the_bounds(spec: str) -> None:
    seen: Counter[str] = Counter()

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        asked = rendered(requests)
        memory = OptimalMemory(asked)
        unlimited = sum(memory.reused(UNLIMITED))
        for capacity in (12, 30):
            comma = "," if ":" in spec else ":"
            strategy = parse_strategy(f"{spec}{comma}capacity={capacity}")
            replayer = Simulator(strategy)
            reused = sum(replayer.replay(request).reused_tokens for request in asked)
            optimal = sum(memory.reused(capacity))
            assert reused <= optimal <= unlimited
            seen["reached"] += 0 < reused == optimal
            seen["limited"] += optimal < unlimited

    check()
    assert seen["limited"]
    assert seen["reached"]


@DETERMINISTIC
@given(requests=traffic())
def test_unlimited_memory_is_the_same_whether_the_future_is_known(
    requests: list[Request],
) -> None:
    asked = rendered(requests)
    replayer = Simulator(UnlimitedMemory())
    reused = [replayer.replay(request).reused_tokens for request in asked]
    memory = OptimalMemory(asked)
    assert list(memory.reused(UNLIMITED)) == reused
    assert memory.stored_tokens == replayer.strategy.stored_tokens


@pytest.mark.parametrize("evict", ["lru", "slru", "s3fifo", "arc", "gdsf", "ttl"])
def test_policies_that_store_every_sequence_have_a_bound_of_their_own(
    evict: str,
) -> None:
    seen: Counter[str] = Counter()

    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        asked = rendered(requests)
        for block, capacity in ((1, 12), (3, 30)):
            memory = OptimalMemory(asked, block)
            storing = sum(memory.reused(capacity, refuses=False))
            optimal = sum(memory.reused(capacity))
            spec = f"paged:block={block},evict={evict},capacity={capacity}"
            replayer = Simulator(parse_strategy(spec))
            reused = sum(replayer.replay(request).reused_tokens for request in asked)
            assert reused <= storing <= optimal
            seen["reached"] += 0 < reused == storing
            seen["below"] += reused < storing
            seen["cost of storing"] += storing < optimal

    check()
    assert seen["reached"]
    assert seen["cost of storing"]
    assert seen["below"]


def test_only_a_policy_that_refuses_can_exceed_that_bound() -> None:
    """One long sequence between two uses of a short one."""
    asked = rendered([Request([1, 2, 3, 9]), Request([5] * 6), Request([1, 2, 3, 8])])
    memory = OptimalMemory(asked)
    assert list(memory.reused(6)) == [0, 0, 3]
    assert list(memory.reused(6, refuses=False)) == [0, 0, 0]


def test_bounds_in_blocks_are_whole_blocks() -> None:
    asked = rendered([Request([1, 2, 3, 4, 5]), Request([1, 2, 3, 4, 6, 6])])
    for block, capacity, reused in ((1, 5, 4), (2, 5, 4), (3, 5, 3), (2, 3, 2)):
        assert list(OptimalMemory(asked, block).reused(capacity)) == [0, reused]


@pytest.mark.parametrize("stores", [False, True])
@pytest.mark.parametrize("capacity", [1, 3, 6])
def test_optimal_memory_gives_what_the_best_choices_would(
    capacity: int, stores: bool
) -> None:
    """All choices of what to keep, tried out on short traffic."""
    sequences = [
        ([1, 2], [1, 2, 3]),
        ([4], [4, 5, 5]),
        ([1, 2, 3, 6], [1, 2, 3, 6]),
        ([4, 5, 7], [4, 5, 7]),
        ([1, 2, 8, 8], [1, 2, 8, 8]),
        ([4, 5, 5, 9], [4, 5, 5, 9]),
        ([1, 2, 3, 6, 6], [1, 2, 3, 6, 6]),
    ]

    def prefixes(ids: Sequence[int]) -> Kept:
        return frozenset(tuple(ids[: i + 1]) for i in range(len(ids)))

    def choices(there: Kept) -> set[Kept]:
        """All that can be kept: whole prefixes, no more than fit."""
        found: set[Kept] = {frozenset()}
        for path in sorted(there, key=len):
            parent = path[:-1]
            found |= {
                kept | {path}
                for kept in found
                if len(kept) < capacity and (not parent or parent in kept)
            }
        return found

    @cache
    def best(i: int, kept: Kept) -> int:
        if i == len(sequences):
            return 0
        asked, made = sequences[i]
        reused = len(prefixes(asked[:-1]) & kept)
        newest = prefixes(made[:capacity])
        options = choices(kept | prefixes(made))
        if stores:
            options = {option for option in options if newest <= option}
        return reused + max(best(i + 1, option) for option in options)

    requests = [Request(asked, made[len(asked) :]) for asked, made in sequences]
    memory = OptimalMemory(rendered(requests))
    found = sum(memory.reused(capacity, refuses=not stores))
    assert found == best(0, frozenset())


def test_content_counts_wherever_it_stood() -> None:
    tool, other = list(range(100, 200)), list(range(300, 340))
    requests = [
        Request([1, 2, 3, *tool, *other, 9]),
        Request([1, 2, 4, 4, *other, *tool, 9]),  # both moved
        Request([1, 2, 5, *tool[10:50], 9]),  # a part of one
    ]
    bound = PositionIndependent(window=40)
    reused = [bound.reused(request) for request in rendered(requests)]
    assert reused == [0, 2 + 40 + 100, 2 + 40]


def test_the_last_token_is_always_computed() -> None:
    bound = PositionIndependent(window=2)
    asked = rendered([Request([1, 2, 3, 4]), Request([5, 1, 2, 3, 4])])
    assert [bound.reused(request) for request in asked] == [0, 4]


def test_hashes_of_prefixes_do_not_tell_of_other_places(tmp_path: Path) -> None:
    source = HashedSource(Weka().open(write_weka(tmp_path / "w.json")))
    workload = Workload((source,))
    assert position_independent(workload) is None
    assert list(OptimalMemory(workload).reused(UNLIMITED)) == [0, 0, 256, 128, 128]
    # Of four units the first two are asked for again.
    assert list(OptimalMemory(workload).reused(2 * 64)) == [0, 0, 128, 0, 128]


def test_tokens_that_take_no_memory_all_fit() -> None:
    requests = rendered([Request([1, 2, 3, 4]), Request([1, 2, 3, 5])])
    bounds, held = find_bounds(requests, [10], CacheLayout.plain(0))
    assert [own.optimal[10] for own in bounds] == [0, 3]
    assert held == 0
