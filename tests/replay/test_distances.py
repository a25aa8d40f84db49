"""One pass says what the least recently used gives at every capacity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.models.folder import find_model
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.distances import ReuseDistances, _Counts
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.workload import Workload, open_sources
from mlxlab.strategies import parse_strategy
from mlxlab.traces.open import open_traces
from mlxlab.traces.schema import Order
from tests.replay.test_bounds import rendered
from tests.support.hashes import weka_session, write_weka
from tests.support.ledger import Request
from tests.support.traffic import DETERMINISTIC, traffic


def simulated(
    requests: Sequence[RenderedRequest], capacity: int, block: int
) -> list[int]:
    """Return what paged reuses of each request, a token a byte."""
    spec = f"paged:block={block},capacity={capacity}"
    replayer = Simulator(parse_strategy(spec))
    return [replayer.replay(request).reused_tokens for request in requests]


@pytest.mark.parametrize("block", [1, 3])
def test_it_is_exact_at_every_capacity(block: int) -> None:
    seen: Counter[str] = Counter()

    @DETERMINISTIC
    @given(requests=traffic(max_requests=16))
    def check(requests: list[Request]) -> None:
        asked = rendered(requests)
        found = ReuseDistances.of(asked, block)
        before = 0
        for capacity in range(block, found.enough + 8, 2):
            reused = found.reused(capacity)
            assert reused.tolist() == simulated(asked, capacity, block)
            assert before <= reused.sum()
            before = int(reused.sum())
            seen["limited"] += before < found.reused(found.enough).sum()
        assert simulated(asked, 10**6, block) == found.reused(found.enough).tolist()
        seen["several runs"] += len(set(found.request)) < len(found.request)

    check()
    assert seen["limited"]
    assert seen["several runs"]


@DETERMINISTIC
@given(requests=traffic(), late=st.integers(1, 4))
def test_it_is_exact_where_requests_ran_at_once(
    requests: list[Request], late: int
) -> None:
    """Each is stored in two parts, after later ones have been planned."""
    asked = [
        replace(
            own,
            order=Order(
                planned=10 * i,
                stored=((10 * i + 2, 3), (10 * (i + late) + 1, len(own.computed))),
            ),
        )
        for i, own in enumerate(rendered(requests))
    ]
    found = ReuseDistances.of(asked)
    for capacity in range(1, found.enough + 5, 4):
        assert found.reused(capacity).tolist() == simulated(asked, capacity, 1)


def test_it_is_exact_for_recorded_and_hashed_sessions_at_the_same_time(
    tmp_path: Path,
) -> None:
    renderer = Renderer(find_model())
    layout = CacheLayout.plain(1 << 10)
    session = weka_session()
    hashed = [write_weka(tmp_path / f"{name}.json", session) for name in "abc"]
    for traces, sizes in (
        (["subagents", "sessions"], [1 << n for n in range(17, 26)]),
        (hashed, [n << 16 for n in range(1, 12)]),
    ):
        sources = open_sources(open_traces(traces), renderer, progress=False)
        workload = Workload(sources, 2)
        requests = list(workload)
        for size in sizes:
            spec = StrategySpec.parse("paged", capacity=size)
            strategy = spec.make(layout, unit=workload.unit)
            replayer = Simulator(strategy)
            reused = [replayer.replay(own).reused_tokens for own in requests]
            found = ReuseDistances.of(requests, 64 // workload.unit)
            assert found.reused(size >> 10).tolist() == reused


def test_nothing_asked_again_needs_no_memory() -> None:
    found = ReuseDistances.of(rendered([Request([1, 2]), Request([2, 1])]))
    assert found.enough == 0
    assert found.reused(100).tolist() == [0, 0]


@DETERMINISTIC
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    changes=st.lists(st.tuples(st.integers(0, 39), st.integers(-3, 3))),
)
def test_sums_of_a_growing_list(
    counts: list[int], changes: list[tuple[int, int]]
) -> None:
    own, plain = _Counts(), []
    for i, count in enumerate(counts):
        own.append(count)
        plain.append(count)
        for place, change in changes:
            if place == i:
                own.add(place // 2, change)
                plain[place // 2] += change
        after = [*accumulate(reversed(plain), initial=0)][::-1][1:]
        assert [own.after(place) for place in range(i + 1)] == after
    assert np.sum(plain) == own.after(0) + plain[0]
