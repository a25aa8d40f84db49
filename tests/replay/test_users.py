"""Users who ask at once: a simulation of their order gives the same counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mlxlab.engine import Engine
from mlxlab.engine.batch import Batch
from mlxlab.engine.working_cache import WorkingCache
from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.live import LiveModel, live_model
from mlxlab.replay.requests import RenderedRequest, render_trace
from mlxlab.replay.simulator import Outcome, Simulator
from mlxlab.replay.turns import Schedule, Turn, list_turns
from mlxlab.replay.users import Answered
from mlxlab.strategies import parse_strategy
from mlxlab.traces.schema import Order
from tests.support.architectures import save_architecture
from tests.support.exchanges import small_traces
from tests.support.hybrids import HYBRIDS

#: Bytes, small enough that strategies evict.
SMALL = {"tiny": "600KiB", "qwen3_5": "100KiB"}
SPECS = (
    "paged:capacity={}",
    "paged:capacity={},evict=residual",
    "prefix",
    "block-hash:capacity={},minimum=64",
)
TRACES = small_traces("code", "docs", "tests", "tools")


@pytest.fixture(scope="module", params=["tiny", "qwen3_5"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModelFolder:
    if request.param == "tiny":
        return find_model()
    path = tmp_path_factory.mktemp("model") / request.param
    save_architecture(path, HYBRIDS[request.param])
    return find_model(str(path))


@pytest.fixture(scope="module")
def live(folder: ModelFolder) -> Iterator[LiveModel]:
    with live_model(folder, chunk=64) as live:
        yield live


@pytest.fixture(scope="module")
def requests() -> list[RenderedRequest]:
    renderer = Renderer(find_model(), parse_rules("all"))
    return [own for trace in TRACES for own in render_trace(trace, renderer)]


@pytest.fixture(scope="module")
def tiny() -> Iterator[LiveModel]:
    with live_model(find_model(), chunk=64) as live:
        yield live


def simulate(
    spec: str, folder: ModelFolder, answered: Sequence[Answered]
) -> list[Outcome]:
    simulator = Simulator(parse_strategy(spec, layout=folder.layout))
    return [simulator.replay(own.request) for own in answered]


def counts(outcomes: Sequence[Outcome]) -> list[tuple[int, int, int, int]]:
    return [
        (own.reused_tokens, own.stored_bytes, own.evicted, own.disk_tokens)
        for own in outcomes
    ]


@pytest.mark.parametrize("form", SPECS)
def test_simulated_equals_live(
    form: str, folder: ModelFolder, live: LiveModel, requests: list[RenderedRequest]
) -> None:
    spec = form.format(SMALL[folder.path.name])
    turns = list_turns(TRACES)
    users = live.users(
        parse_strategy(spec, layout=folder.layout),
        requests,
        Schedule(turns, 3, think_times=0.02),
    )
    answered = users.run()
    assert sorted(own.number for own in answered) == list(range(len(requests)))
    outcomes = [own.outcome for own in answered]
    assert counts(outcomes) == counts(simulate(spec, folder, answered))
    assert sum(own.reused_tokens for own in outcomes) > 0
    assert sum(own.evicted for own in outcomes) > 0
    assert overlap([own.request for own in answered])
    assert all(0 < (own.ttft_s or 0) < (own.total_s or 0) for own in outcomes)
    users.engine.strategy.check_integrity()
    for own in answered:
        assert own.request.order is not None
        _, stored = own.request.order.stored[-1]
        assert stored == len(own.request.computed)
    check_times(turns, answered, 0.02)


def overlap(requests: Sequence[RenderedRequest]) -> bool:
    """Whether a request was planned before an earlier one was stored."""
    orders = [own.order for own in requests if own.order]
    return any(b.planned < a.stored[-1][0] for a, b in pairwise(orders))


def check_times(
    turns: Sequence[Sequence[Turn]], answered: Sequence[Answered], factor: float
) -> None:
    """Each request was sent when its answers had ended and its user had thought."""
    sent = {own.number: own.outcome.arrived_s or 0.0 for own in answered}
    ended = {
        own.number: sent[own.number] + (own.outcome.total_s or 0.0) for own in answered
    }
    running = [(sent[own.number], ended[own.number]) for own in answered]
    starts: list[float] = []
    for own in turns:
        first = min(sent[turn.number] for turn in own)
        starts.append(first)
        for turn in own:
            free = max((ended[number] for number in turn.after), default=first)
            assert sent[turn.number] == pytest.approx(free + factor * turn.think_s)
    assert starts[:3] == [0, 0, 0]  # the fourth trace waits for a user
    assert starts[3] == min(
        max(ended[turn.number] for turn in own) for own in turns[:3]
    )
    assert any(a < d and c < b for (a, b), (c, d) in pairwise(sorted(running)))


@pytest.mark.parametrize("spec", ["paged:capacity=300KiB,disk=64MiB"])
def test_simulated_equals_live_with_a_disk(
    spec: str, tiny: LiveModel, requests: list[RenderedRequest]
) -> None:
    strategy = parse_strategy(spec, layout=tiny.folder.layout)
    schedule = Schedule(list_turns(TRACES), 3, 0.0)
    answered = tiny.users(strategy, requests, schedule).run()
    outcomes = [own.outcome for own in answered]
    assert counts(outcomes) == counts(simulate(spec, tiny.folder, answered))
    assert sum(own.disk_tokens for own in outcomes) > 0


def made(lengths: Sequence[int], answer: int = 8) -> list[RenderedRequest]:
    """Return requests without a common beginning."""
    rng = np.random.default_rng(0)
    return [
        RenderedRequest(
            "session",
            i,
            Prompt.of(rng.integers(10, 3000, length).tolist()),
            rng.integers(10, 3000, answer).astype(np.int32),
        )
        for i, length in enumerate(lengths)
    ]


def at_once(live: LiveModel, requests: Sequence[RenderedRequest]) -> list[Answered]:
    """Let a user send each of the requests now."""
    turns = [[Turn(i, (), 0.0)] for i in range(len(requests))]
    strategy = parse_strategy("paged", layout=live.folder.layout)
    return live.users(strategy, requests, Schedule(turns, len(requests))).run()


def test_the_queue_counts_for_the_first_token(tiny: LiveModel) -> None:
    found = at_once(tiny, made([80] * 10, answer=30))
    assert all(own.outcome.arrived_s == 0 for own in found)
    # Eight run at once, as on the server.
    ends = sorted(own.outcome.total_s or 0.0 for own in found)
    late = [own.outcome.ttft_s or 0.0 for own in found[8:]]
    assert min(late) > ends[0]


def test_recorded_answers_are_decoded_a_token_at_a_time(
    tiny: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[int, Any]] = []
    step = Batch.step

    def counted(batch: Batch) -> dict[int, Any]:
        steps.append(step(batch))
        return steps[-1]

    monkeypatch.setattr(Batch, "step", counted)
    requests = made([20, 30, 40], answer=12)
    at_once(tiny, requests)
    fed = [token for found in steps for token in found.values()]
    assert sorted(fed) == sorted(i for own in requests for i in own.answer.tolist())
    assert max(len(found) for found in steps) == 3


def test_progress_counts_prompts_and_answers(tiny: LiveModel) -> None:
    requests = [*made([50, 130]), *made([20], answer=0)]
    done: list[int] = []
    turns = [[Turn(i, (), 0.0)] for i in range(3)]
    strategy = parse_strategy("paged", layout=tiny.folder.layout)
    tiny.users(strategy, requests, Schedule(turns, 2), done.append).run()
    assert sum(done) == sum(len(own.prompt) + len(own.answer) for own in requests)


def test_without_an_answer_the_cache_is_filled(live: LiveModel) -> None:
    requests = made([50, 60], answer=0)
    found = at_once(live, requests)
    for own in found:
        assert own.request.order is not None
        assert own.request.order.stored[-1][1] == len(own.request.prompt) - 1
        assert own.outcome.ttft_s is None
    assert counts([own.outcome for own in found]) == counts(
        simulate("paged", live.folder, found)
    )


def test_a_prompt_that_only_fills_the_cache_waits_for_answers(tiny: LiveModel) -> None:
    first, warm, last = made([50, 60, 70])
    nothing = np.empty(0, np.int32)
    warm = replace(warm, prompt=replace(warm.prompt, pinned=True), answer=nothing)
    found = at_once(tiny, [warm, first, replace(last, answer=nothing)])
    # A request whose answer was not recorded is one like others.
    assert [own.number for own in found] in ([1, 2, 0], [2, 1, 0])
    assert counts([own.outcome for own in found]) == counts(
        simulate("paged", tiny.folder, found)
    )


def test_a_client_that_left_leaves_again(tiny: LiveModel) -> None:
    whole, left = made([100, 400])
    order = Order(planned=1, stored=((2, 100),))
    nothing = np.empty(0, np.int32)
    cut = replace(left, answer=nothing, order=order)
    again = replace(left, id=2)
    turns = [[Turn(0, (), 0.0)], [Turn(1, (), 0.0), Turn(2, (1,), 0.0)]]
    strategy = parse_strategy("paged", layout=tiny.folder.layout)
    found = tiny.users(strategy, [whole, cut, again], Schedule(turns, 2)).run()
    by_number = {own.number: own for own in found}
    cut_order = by_number[1].request.order
    assert cut_order is not None
    assert cut_order.stored[-1][1] == 128  # the end of a chunk
    assert by_number[2].outcome.reused_tokens == 128
    assert counts([own.outcome for own in found]) == counts(
        simulate("paged", tiny.folder, found)
    )


def test_an_answer_that_fails_ends_the_replay(tiny: LiveModel) -> None:
    strategy = parse_strategy("paged", layout=tiny.folder.layout)
    turns = [[Turn(0, (), 0.0)], [Turn(1, (), 0.0)]]
    users = tiny.users(strategy, made([50, 500]), Schedule(turns, 2))
    users.engine.window = 100
    with pytest.raises(ModelError, match="prompt is too long: 500 tokens > 100"):
        users.run()


def test_only_the_worker_computes(
    tiny: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **given: Any) -> Any:
            threads.add(threading.current_thread().name)
            return call(*args, **given)

        return noting

    for owner, name in (
        (Engine, "begin"),
        (Engine, "commit"),
        (WorkingCache, "compute"),
        (Batch, "step"),
    ):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name)))
    at_once(tiny, made([50, 60]))
    assert threads == {"mlxlab-worker"}


def test_a_replay_can_be_stopped_while_its_users_think(tiny: LiveModel) -> None:
    turns = [[Turn(0, (), 0.0), Turn(1, (0,), 3600.0)]]
    strategy = parse_strategy("paged", layout=tiny.folder.layout)
    done: list[int] = []
    users = tiny.users(strategy, made([20, 30]), Schedule(turns, 1), done.append)
    steps = tiny.worker.stream(users._steps)
    while sum(done) < 28:
        next(steps)
    steps.close()
    # The worker is free again.
    assert tiny.worker.submit(int).result(timeout=10) == 0
