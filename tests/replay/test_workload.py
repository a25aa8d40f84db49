from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from mlxlab.errors import TraceError
from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt, Role
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.workload import (
    HashedSource,
    NumberedRequest,
    Numbers,
    Source,
    Workload,
)
from mlxlab.strategies import make_strategy
from mlxlab.traces.hashed.mooncake import Mooncake
from mlxlab.traces.hashed.weka import Weka
from tests.support.hashes import weka_session, write_mooncake, write_weka


@dataclass
class Listed:
    """Steps at given times; counts how many were open at once."""

    name: str
    times: list[float]
    open: list[int] = field(default_factory=lambda: [0, 0])
    unit: int = 1

    @property
    def digest(self) -> str:
        return self.name

    def requests(self, numbers: Numbers) -> Iterator[tuple[float, RenderedRequest]]:
        self.open[0] += 1
        self.open[1] = max(self.open)
        for i, t in enumerate(self.times):
            yield (
                t,
                RenderedRequest(self.name, i, Prompt.of([1]), np.empty(0, np.int32)),
            )
        self.open[0] -= 1


def order(users: int, *sources: Source) -> str:
    return " ".join(
        f"{request.session}{request.id}" for request in Workload(sources, users)
    )


def test_one_user_takes_one_trace_after_the_other() -> None:
    sources = Listed("a", [5, 9]), Listed("b", []), Listed("c", [0, 1])
    assert order(1, *sources) == "a0 a1 c0 c1"


def test_users_take_traces_at_the_same_time() -> None:
    sources = Listed("a", [5, 8, 20]), Listed("b", [0, 1]), Listed("c", [7, 9, 11])
    # c begins when b ends, at second 1, and goes on at 3 and 5.
    assert order(2, *sources) == "a0 b0 b1 c0 a1 c1 c2 a2"
    assert order(9, *sources) == "a0 b0 c0 b1 c1 a1 c2 a2"
    assert order(10**12, *sources) == order(9, *sources)


def test_no_more_traces_are_open_than_there_are_users() -> None:
    opened = [0, 0]
    sources = [Listed(str(i), [0.0, 1.0, float(i)], opened) for i in range(20)]
    assert len(list(Workload(sources, 3))) == 60
    assert opened == [0, 3]


def test_traces_of_different_units_do_not_mix(tmp_path: Path) -> None:
    weka = HashedSource(Weka().open(write_weka(tmp_path / "w.json")))
    mooncake = HashedSource(Mooncake().open(write_mooncake(tmp_path / "m.jsonl")))
    with pytest.raises(TraceError, match="units of tokens: 64, 512; give traces of"):
        Workload((weka, mooncake))
    with pytest.raises(TraceError, match="units of tokens: none"):
        Workload(())


def test_a_hashed_step_is_a_prompt_of_units(tmp_path: Path) -> None:
    source = HashedSource(Weka().open(write_weka(tmp_path / "w.json")))
    first, agent, second, _, cut = Workload((source,))
    assert isinstance(second, NumberedRequest)
    assert (first.session, agent.session) == ("w", "w/agent_001")
    # 256 tokens are four whole units; 330 are five and a rest.
    assert (first.tokens, len(first.prompt)) == (256, 4)
    assert (second.tokens, len(second.prompt)) == (330, 6)
    assert len(second.computed) == 5
    ids = [request.prompt.tokens.tolist() for request in (first, agent, second, cut)]
    assert ids == [[0, 1, 2, 3], [4, 5, -1], [0, 1, 2, 3, 6, -1], [0, 1, 8, -1]]
    roles = [(s.role, s.start, s.stop) for s in first.prompt.segments]
    assert roles == [(Role.TOOLS, 0, 1), (Role.SYSTEM, 1, 2), (Role.UNKNOWN, 2, 4)]
    assert first.prompt.static_length == 2


def test_equal_numbers_of_different_traces_are_different_here(tmp_path: Path) -> None:
    paths = [write_weka(tmp_path / name) for name in ("a.json", "b.json")]
    sources = [HashedSource(Weka().open(path)) for path in paths]
    strategy = make_strategy("paged", unit=64)
    reused = 0
    for request in Workload(sources, 2):
        plan = strategy.plan(request.prompt)
        strategy.commit(request.computed, plan)
        reused += plan.reused
    # In each: 2 of the sub-agent's, then 4 and 2 of the main loop's.
    assert reused == 2 * 8


def test_what_is_reused_in_units_is_what_would_be_in_tokens(tmp_path: Path) -> None:
    session = weka_session()
    source = HashedSource(Weka().open(write_weka(tmp_path / "w.json", session)))
    units = make_strategy("paged", unit=64, layout=CacheLayout.plain(3))
    tokens = make_strategy("paged", layout=CacheLayout.plain(3))
    for request in Workload((source,)):
        # 64 ids that only this unit has, and a rest that nothing has.
        ids = np.repeat(np.maximum(request.prompt.tokens, 0), 64)[: request.tokens]
        long = Prompt.of(ids * 64 + np.arange(request.tokens) % 64)
        plan, whole = units.plan(request.prompt), tokens.plan(long)
        assert plan.reused * 64 == whole.reused
        units.commit(request.computed, plan)
        tokens.commit(long.head(len(request.computed) * 64), whole)
        assert units.stored_bytes == tokens.stored_bytes
