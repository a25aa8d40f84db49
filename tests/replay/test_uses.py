"""What eviction is told of recorded, exported and published requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mlxlab as ml
from mlxlab.models.folder import find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.export import export_trace
from mlxlab.replay.requests import RenderedRequest, render_trace
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.uses import describe_missing
from mlxlab.replay.workload import HashedSource, RenderedTrace, Workload
from mlxlab.strategies import make_strategy
from mlxlab.strategies.eviction.lru import LeastRecent
from mlxlab.strategies.use import Use
from mlxlab.traces import Trace, read_trace, write_trace
from mlxlab.traces.hashed.mooncake import Mooncake
from mlxlab.traces.hashed.weka import Weka
from mlxlab.traces.schema import Order, Told
from tests.support.exchanges import small_trace
from tests.support.hashes import weka_session, write_mooncake, write_weka


def ended_trace() -> Trace:
    """The small trace; answers without calls end their turn, one does not say."""
    exchanges = []
    for own in small_trace():
        assert own.response is not None
        message: Any = dict(own.response.message or {})
        if own.id:
            calls = any(block["type"] == "tool_use" for block in message["content"])
            message["stop_reason"] = "tool_use" if calls else "end_turn"
        response = replace(own.response, message=message)
        exchanges.append(replace(own, response=response))
    return Trace("ended", tuple(exchanges))


@pytest.fixture(scope="module")
def requests() -> list[RenderedRequest]:
    return render_trace(ended_trace(), Renderer(find_model()))


def test_a_recording_shows_who_asked_and_how_answers_ended(
    requests: list[RenderedRequest],
) -> None:
    uses = [request.use for request in requests]
    assert uses[0] == Use("aaaaaaaa", 0.0, 0.5, "tool_use", ("Bash",))  # by its call
    assert uses[3] == Use("aaaaaaaa/ag1", 3.0, 3.5, "tool_use", ("Bash",))
    assert uses[8] == Use("aaaaaaaa", 8.0, 8.5, "tool_use", ("Bash",))


def test_what_our_server_told_its_policy_goes_before_the_recorders_times(
    tmp_path: Path,
) -> None:
    trace = ended_trace()
    told = Told(arrived=100.25, ended=102.5, stop="end_turn", side=True)
    own = trace.exchanges[0]
    assert own.response is not None
    changed = replace(own, response=replace(own.response, told=told))
    written = Trace("told", (changed, *trace.exchanges[1:]))
    write_trace(written, tmp_path / "told.jsonl")
    read = read_trace(tmp_path / "told.jsonl")
    assert isinstance(read, Trace)
    (first, *_) = render_trace(read, Renderer(find_model()))
    assert first.use == Use("aaaaaaaa", 100.25, 102.5, "end_turn", ("Bash",), side=True)


def test_an_export_keeps_endings_and_no_names(
    requests: list[RenderedRequest], tmp_path: Path
) -> None:
    hashed = export_trace(ended_trace(), tmp_path / "h.jsonl", progress=False)
    for request, own in zip(requests, hashed, strict=True):
        assert (own.t, own.ended) == (request.use.t, request.use.ended)
        assert (own.stop, own.side) == (request.use.stop, request.use.side)
        assert own.tools == ("1",) * len(request.use.tools)
    assert "Bash" not in hashed.path.read_text()


def test_published_sessions_say_how_answers_ended(tmp_path: Path) -> None:
    session: Any = weka_session()
    session["requests"][0] |= {"stop": "end_turn", "api_time": 1.5}
    session["requests"][1]["requests"][1] |= {"api_time": 2.0}
    trace = Weka().open(write_weka(tmp_path / "s.json", session))
    uses = [request.use for request in Workload([HashedSource(trace)])]
    assert uses[0] == Use("s", 0.0, 1.5, "end_turn")
    assert uses[3] == Use("s/agent_001", 4.0, 6.0, "tool_use")
    assert uses[1].ended is None


def test_who_asked_is_not_known_where_requests_have_no_sessions(tmp_path: Path) -> None:
    trace = Mooncake().open(write_mooncake(tmp_path / "m.jsonl"))
    uses = [request.use for request in Workload([HashedSource(trace)])]
    assert uses == [Use("", 0.0), Use("", 1.5)]


def test_all_times_of_a_workload_are_on_one_clock(
    requests: list[RenderedRequest],
) -> None:
    sources = [
        RenderedTrace.of(replace(small_trace(), name=name), requests, name)
        for name in "ab"
    ]
    times = [(own.use.t, own.use.ended) for own in Workload(sources, users=1)]
    alone = [(float(i), i + 0.5) for i in range(10)]
    # The second trace begins when the last request of the first one arrives.
    assert times == alone + [(t + 9, ended + 9) for t, ended in alone]
    together = [own.use.t for own in Workload(sources, users=2)]
    assert together == [float(i) for i in range(10) for _ in range(2)]


class Listening(LeastRecent):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Use] = []

    def begin(self, use: Use) -> None:
        super().begin(use)
        self.heard.append(use)


def test_a_simulation_tells_the_policy_what_was_known_at_each_commit(
    requests: list[RenderedRequest],
) -> None:
    strategy = make_strategy("paged", block=1)
    strategy.eviction = heard = Listening()
    order = Order(planned=0, stored=((1, 20), (2, len(requests[0].computed))))
    simulator = Simulator(strategy)
    simulator.replay(replace(requests[0], order=order, trace="own"))
    simulator.replay(requests[1])
    first = requests[0].use
    early = replace(first, ended=None, stop="", tools=(), running=True)
    assert heard.heard == [early, first, requests[1].use]


def described(requests: list[RenderedRequest], *policies: str) -> list[str]:
    return describe_missing(requests, policies)


def test_what_most_requests_do_not_say_is_listed(
    requests: list[RenderedRequest],
) -> None:
    def altered(**changes: Any) -> list[RenderedRequest]:
        return [
            replace(own, use=replace(own.use, **changes), id=i)
            for i, own in enumerate(requests)
        ]

    assert described(requests, "residual") == []
    untimed = altered(t=None, ended=None)
    line = "none of the requests say when they came: evict=residual evicts as lru"
    assert described(untimed, "residual") == [line]
    assert described(altered(t=7.0), "lru", "residual") == [line]  # all at once
    assert describe_missing(untimed, ["residual"], clocked=True) == []
    line = "none of the requests say which agent asks: evict=ttl and residual"
    found = described(altered(agent=""), "ttl", "residual", "ttl")
    assert found == [f"{line} evicts as lru"]
    ends = altered(stop="")
    ends[:2] = altered(stop="end_turn")[:2]
    line = "only 20% of the requests say how their answers ended: evict=residual"
    assert described(ends, "residual") == [f"{line} knows less"]
    assert described(ends, "lru", "arc", "gdsf") == []
    sides = altered(stop="", side=True)
    assert described(sides, "residual") == []
    assert described([], "residual") == []


def test_results_say_what_is_missing_where_a_policy_goes_by_it() -> None:
    trace = Trace("silent", tuple(replace(own, response=None) for own in small_trace()))
    asked: Any = {"progress": False}
    both = ["paged", "paged:evict=residual"]
    made: list[Callable[[list[str]], ml.Result]] = [
        lambda specs: ml.compare(trace, specs, simulate=True, **asked),
        lambda specs: ml.sweep(trace, specs, scheduler="here", **asked),
        lambda specs: ml.plan(trace, specs[-1], most=1, **asked),
    ]
    for make in made:
        (line,) = [own for own in make(both).notes if "of the requests say" in own]
        assert line.endswith("ended: evict=residual knows less")
        assert line in repr(make(both))
        assert not any("of the requests say" in own for own in make(["paged"]).notes)
    tuned = ml.tune(trace, memory="1MiB", trials=12, **asked)
    assert tuned.requests.strategy.str.contains("residual").any()
    assert line in tuned.notes
