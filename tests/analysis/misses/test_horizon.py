"""Where requests come for ever, only the latest are remembered."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

from mlxlab.analysis.misses.attribution import Attributor, History
from mlxlab.analysis.misses.causes import Cause
from mlxlab.analysis.misses.horizon import ENDLESS, Horizon
from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import Strategy, make_strategy

NEAR = Horizon(tokens=2000, sequences=8, requests=16)
NARROW = Horizon(tokens=500, sequences=4, requests=8)


@pytest.mark.parametrize(
    ("lengths", "beyond"),
    [
        ([], 0),
        ([5000], 0),
        ([1, 1], 0),
        ([1] * 9, 1),
        ([900, 900, 200], 0),
        ([900, 900, 201], 1),
        ([1, 5000, 5000], 2),
    ],
)
def test_the_oldest_are_beyond(lengths: list[int], beyond: int) -> None:
    assert NEAR.beyond(lengths) == beyond
    assert ENDLESS.beyond(lengths) == 0


def text(tokens: Tokens) -> str:
    return tokens.tobytes().hex()


def held() -> int:
    """Return the bytes that the package has allocated and still holds."""
    gc.collect()
    own = tracemalloc.Filter(inclusive=True, filename_pattern="*/mlxlab/*")
    traces = tracemalloc.take_snapshot().filter_traces([own])
    return sum(found.size for found in traces.statistics("filename"))


def request(number: int, length: int = 100) -> RenderedRequest:
    """Return one of many sessions; every third goes on with its first prompt."""
    session, turns = divmod(number, 3)
    ids = np.arange(length + 10 * turns) + 1000 * session
    answer = np.array([1, 2], np.int32)
    return RenderedRequest(str(session), number, Prompt.of(ids), answer)


def strategies() -> dict[str, Strategy]:
    return {
        "anywhere": make_strategy("paged", capacity=400, block=8),
        "checkpoints": make_strategy("paged", capacity=4000, checkpoint_bytes=50),
    }


@pytest.mark.parametrize("name", ["anywhere", "checkpoints"])
def test_what_is_remembered_is_bounded(name: str) -> None:
    strategy = strategies()[name]
    history = History(NARROW)
    attributor = Attributor(strategy, text, history)
    found: set[Cause | None] = set()
    sizes: list[int] = []
    tracemalloc.start()
    for number in range(300):
        own = request(number)
        plan = strategy.preview(own.prompt)
        attribution = attributor.attribute(own, plan)
        found |= {part.cause for part in attribution.parts}
        attributor.commit(own, plan, len(own.computed), own.use)
        if number in (200, 299):
            sizes.append(held())
    tracemalloc.stop()
    # Without a horizon it grows by some hundreds of thousands.
    assert sizes[1] < sizes[0] + 25_000, sizes
    assert history.memory.stored_tokens <= NARROW.tokens
    assert len(history.predecessors._sessions) <= NARROW.sequences
    assert len(attributor.evictions._sequences) <= NARROW.sequences
    assert len(attributor._committed) <= NARROW.requests
    assert found >= {Cause.FRESH, Cause.SESSION, None}


def test_an_evictor_is_named_as_long_as_it_is_remembered() -> None:
    strategy = make_strategy("paged", capacity=400, block=8)
    attributor = Attributor(strategy, text, History(NEAR))
    for number in (0, 3, 6, 9, 12):
        own = request(number)
        plan = strategy.preview(own.prompt)
        attributor.commit(own, plan, len(own.computed), own.use)
    again = request(0)
    parts = attributor.attribute(again, strategy.preview(again.prompt)).parts
    evicted = [part.evictor for part in parts if part.cause is Cause.EVICTED]
    assert [own.id for own in evicted if own] == [12]
    assert all(own is None or len(own.prompt) == 0 for own in evicted)
