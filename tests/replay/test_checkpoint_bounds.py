"""No placement of checkpoints beats its bound, which is close to the best one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxlab.models.layout import CacheLayout
from mlxlab.replay.bounds import (
    BOUNDS,
    PLACEMENT,
    UNLIMITED,
    OptimalMemory,
    find_bounds,
    tabulate_bounds,
)
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.workload import HashedSource, Workload
from mlxlab.traces.hashed.weka import Weka
from tests.support.hashes import write_weka
from tests.support.ledger import Request
from tests.support.placements import PLACEMENTS, Memory, best_placement, replay
from tests.support.traffic import DETERMINISTIC, traffic


def rendered(requests: Sequence[Request]) -> list[RenderedRequest]:
    return [
        RenderedRequest("s", i, r.prompt, np.array([*r.answer, 9], np.int32))
        for i, r in enumerate(requests)
    ]


def bound(requests: Sequence[RenderedRequest], memory: Memory) -> int:
    found, _ = find_bounds(
        requests,
        [memory.capacity],
        CacheLayout.plain(memory.token, memory.checkpoint),
    )
    for own in found:
        assert 0 <= own.placement[memory.capacity] <= own.unlimited
    return sum(own.placement[memory.capacity] for own in found)


def belady(requests: Sequence[RenderedRequest], memory: Memory) -> int:
    return sum(OptimalMemory(requests).reused(memory.capacity // memory.token))


@st.composite
def small_traffic(draw: st.DrawFn) -> list[Request]:
    """Draw up to seven requests, each after a cut of an earlier sequence."""
    ids = st.integers(0, 1)
    sequences: list[list[int]] = [[]]
    requests: list[Request] = []
    for _ in range(draw(st.integers(3, 7))):
        earlier = draw(st.sampled_from(sequences))
        cut = draw(st.just(len(earlier)) | st.integers(0, len(earlier)))
        own = earlier[:cut] + draw(st.lists(ids, max_size=3))
        requests.append(Request(own[:8] or [0], draw(st.lists(ids, max_size=1))))
        sequences.append(requests[-1].ids + requests[-1].answer)
    return requests


def test_the_bound_is_at_least_the_best_of_all_choices_and_mostly_equal() -> None:
    gaps: list[float] = []

    @settings(DETERMINISTIC, max_examples=300)
    @given(
        requests=small_traffic(),
        checkpoint=st.integers(1, 6),
        capacity=st.integers(4, 24),
    )
    def check(requests: list[Request], checkpoint: int, capacity: int) -> None:
        asked, memory = rendered(requests), Memory(2, checkpoint, capacity)
        best, found = best_placement(asked, memory), bound(asked, memory)
        optimal = belady(asked, memory)
        assert best <= found <= optimal
        if best < optimal:  # checkpoints cost some reuse
            gaps.append((found - best) / max(best, 1))

    check()
    assert len(gaps) > 50
    assert median(gaps) == 0
    assert float(np.mean(gaps)) < 0.05


@pytest.mark.parametrize("name", PLACEMENTS)
def test_no_placement_reuses_more_than_the_bound(name: str) -> None:
    seen: Counter[str] = Counter()

    @settings(DETERMINISTIC, max_examples=70)
    @given(
        requests=traffic(), checkpoint=st.integers(1, 30), capacity=st.integers(20, 99)
    )
    def check(requests: list[Request], checkpoint: int, capacity: int) -> None:
        asked, memory = rendered(requests), Memory(2, checkpoint, capacity)
        reused = replay(PLACEMENTS[name], asked, memory)
        found, optimal = bound(asked, memory), belady(asked, memory)
        assert reused <= found <= optimal
        seen["reached"] += 0 < reused == found
        seen["costs"] += found < optimal

    check()
    assert seen["reached"]
    assert seen["costs"]


@DETERMINISTIC
@given(requests=traffic(), tokens=st.integers(4, 60))
def test_checkpoints_of_no_size_give_what_optimal_memory_gives(
    requests: list[Request], tokens: int
) -> None:
    asked, memory = rendered(requests), Memory(10**6, 1, tokens * 10**6 + 10**4)
    assert bound(asked, memory) == belady(asked, memory)


def test_a_checkpoint_is_held_since_a_request_computed_its_end() -> None:
    """The second request resumes behind the branch that the third one needs.

    It could only compute the branch again by reusing less. So both checkpoints are
    held beside the keys and values, or some tokens are not reused.
    """
    asked = rendered(
        [
            Request([1, 2, 3, 4, 5, 6, 7, 8]),
            Request([1, 2, 3, 4, 5, 6, 7, 8, 9]),
            Request([1, 2, 3, 4, 0]),
        ]
    )
    both, one = Memory(1, 4, 8 + 2 * 4), Memory(1, 4, 8 + 4)
    assert best_placement(asked, both) == bound(asked, both) == 8 + 4
    assert best_placement(asked, one) == 8
    assert 8 <= bound(asked, one) < 8 + 4


def test_a_checkpoint_larger_than_the_memory_is_of_no_use() -> None:
    asked = rendered([Request([1, 2, 3, 4]), Request([1, 2, 3, 5])])
    assert bound(asked, Memory(1, 50, 40)) == 0
    assert bound(asked, Memory(1, 37, 40)) == 3
    assert bound(asked, Memory(1, 38, 40)) == 2  # a part of the common prefix
    assert bound(rendered([Request([1])]), Memory(1, 1, 40)) == 0


def test_units_of_hashed_traces_count_in_tokens(tmp_path: Path) -> None:
    source = HashedSource(Weka().open(write_weka(tmp_path / "w.json")))
    workload = Workload((source,))
    exact, held = find_bounds(workload, [UNLIMITED], CacheLayout.plain(2, 10))
    assert [own.placement[UNLIMITED] for own in exact] == [0, 0, 256, 128, 128]
    assert held == OptimalMemory(workload).stored_tokens * 2
    little = 2 * 64 * 2  # as much as two units
    found, _ = find_bounds(workload, [little, little + 10], CacheLayout.plain(2, 10))
    assert sum(own.placement[little] for own in found) < 256
    assert sum(own.placement[little + 10] for own in found) == 256


def test_only_models_with_checkpoints_have_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = rendered([Request([1, 2, 3, 4]), Request([1, 2, 3, 5])])
    found, held = find_bounds(asked, [4, UNLIMITED], CacheLayout.plain(1, 2))
    table = tabulate_bounds(found, held)
    assert table.bound.tolist() == [
        "unlimited",
        "optimal",
        PLACEMENT,
        "position_independent",
    ]
    assert table.reused_tokens.tolist() == [3, 3, 2, 3]
    assert found[1].at(4) == dict(zip(BOUNDS, (3, 3, 3), strict=True)) | {PLACEMENT: 2}
    found, held = find_bounds(asked, [4, UNLIMITED], CacheLayout.plain(1))
    assert tabulate_bounds(found, held).bound.tolist() == list(BOUNDS)
    assert list(found[1].at(4)) == list(BOUNDS)
