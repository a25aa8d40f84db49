"""The simulated server's turns, against times computed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from time import process_time
from typing import Any

import numpy as np
import pytest

from mlxlab.errors import ConfigError
from mlxlab.prompt import Prompt
from mlxlab.replay.clock.arrivals import Poisson
from mlxlab.replay.clock.batch import DecodingBatch
from mlxlab.replay.clock.server import ClockedServer
from mlxlab.replay.clock.timing import Service, Timing
from mlxlab.replay.cost_model import CostModel, Machine
from mlxlab.replay.decoding_costs import Decoding
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.turns import Schedule, Turn
from mlxlab.strategies import make_strategy
from mlxlab.strategies.use import Use

#: A step takes 1 s and 0.5 s for each answer in it, a token of a prompt 0.01 s. The
#: last token of a prompt is computed when its answer joins.
COSTS = CostModel(
    model="m",
    machine=Machine(system="s", processor="p", mlx="0", chunk=100),
    device="d",
    blas="b",
    day=date(2026, 12, 1),
    prefill=(0.0, 0.0, 0.01, 0.0, 0.0, 0.0),
    restore=(0.25, 0.0),
    points=(),
    decode=Decoding(step=1.0, row=0.5, token=0.0, padded=0.0),
)


class Fixed:
    """Requests that come at given times, in order."""

    def __init__(self, *times: float) -> None:
        self.times = list(enumerate(times))

    @property
    def next_due(self) -> float | None:
        return self.times[0][1] if self.times else None

    def start(self, now: float) -> None:
        pass

    def take(self, now: float) -> Iterator[tuple[float, int]]:
        while self.times and self.times[0][1] <= now:
            number, due = self.times.pop(0)
            yield due, number

    def end(self, number: int, now: float) -> None:
        pass


def request(number: int, tokens: int, answer: int) -> RenderedRequest:
    ids = np.arange(tokens, dtype=np.int32) + 10_000 * number
    told = np.arange(answer, dtype=np.int32) + 10_000 * number + 5_000
    prompt = Prompt(ids, (), exact_segments=False)
    return RenderedRequest(f"s{number}", number, prompt, told)


def serve(
    requests: Sequence[RenderedRequest], *times: float, most: int = 8
) -> list[Timing]:
    strategy = make_strategy("paged", block=1, capacity=10**6)
    served = ClockedServer(strategy, COSTS, most=most).serve(requests, Fixed(*times))
    return sorted(served.timings, key=lambda timing: timing.number)


def test_one_request_takes_its_prefill_and_its_steps() -> None:
    (own,) = serve([request(0, 201, 3)], 5.0)
    assert own.queue_s == 0
    assert own.ttft_s == pytest.approx(2.01 + 1.5)  # 201 tokens, then a step
    assert own.itl_s == pytest.approx(1.5)
    assert own.total_s == pytest.approx(2.01 + 3 * 1.5)


def test_chunks_of_a_prompt_come_between_steps_of_an_answer() -> None:
    first, second = serve([request(0, 101, 6), request(1, 301, 1)], 0.0, 1.2)
    # The first prompt takes until 1.01, its first step until 2.51. Each step is longer
    # than the 0.2 s that are owed for a chunk, so one chunk of 1.0 s follows each.
    assert first.first == pytest.approx(2.51)
    assert second.begun == pytest.approx(4.01)
    # Steps end at 4.01, 6.51, 9.01; chunks at 5.01, 7.51, 10.01. The second joins until
    # 10.02, both decode until 12.02.
    assert second.first == second.ended == pytest.approx(12.02)
    assert first.ended == pytest.approx(12.02 + 1.5)


def test_answers_are_owed_time_for_the_latest_chunk_alone() -> None:
    _, second = serve([request(0, 1001, 9), request(1, 101, 1)], 0.0, 9.5)
    # The second prompt arrives in the tenth chunk, and begins after one step.
    assert second.begun == pytest.approx(10.01 + 1.5)


def test_a_request_waits_for_a_slot() -> None:
    first, second = serve([request(0, 101, 2), request(1, 101, 1)], 0.0, 0.5, most=1)
    assert first.ended == pytest.approx(1.01 + 2 * 1.5)
    assert second.queue_s == pytest.approx(first.ended - 0.5)


def test_answers_decode_together_until_one_ends() -> None:
    first, second = serve([request(0, 1, 4), request(1, 1, 2)], 0.0, 0.0)
    # The first answer joins at once, and makes a step before the second joins.
    assert first.first == pytest.approx(0.01 + 1.5)
    assert second.ended == pytest.approx(0.01 + 1.5 + 0.01 + 2 * 2.0)
    assert first.ended == pytest.approx(second.ended + 1.5)


def test_who_joins_or_leaves_has_the_padded_batch_copied() -> None:
    copied = COSTS.decoding.model_copy(update={"join": (0.1, 1e-3), "leave": (0, 1e-2)})
    costs = COSTS.model_copy(update={"decode": copied})
    server = ClockedServer(make_strategy("none"), costs)
    served = server.serve([request(0, 101, 5), request(1, 11, 2)], Fixed(0.0, 0.0))
    first, second = sorted(served.timings, key=lambda timing: timing.number)
    # The shorter prompt comes first. When the other joins, the longest has 101 tokens.
    assert second.first == pytest.approx(0.11 + 1.5)
    assert second.first is not None
    joined = second.first + 1.01 + 0.1 + 2 * 101e-3
    assert first.first == pytest.approx(joined + 2.0)
    # The second leaves behind that step; the first is then alone, and leaves nobody.
    assert second.ended == pytest.approx(joined + 2.0 + 2 * 102e-2)
    assert first.ended == pytest.approx(second.ended + 4 * 1.5)


def test_a_batch_is_padded_to_its_longest_answer() -> None:
    batch: DecodingBatch[str] = DecodingBatch(
        Decoding(step=1.0, row=0.0, token=1.0, padded=1.0)
    )
    batch.add("long", context=100, tokens=2)
    assert batch.seconds(2) == pytest.approx(101 + 102)
    batch.add("short", context=10, tokens=5)
    assert batch.seconds(2) == pytest.approx(1 + 2 * 100 + 1 + 2 * 101)
    assert [own for own, _ in batch.advance(2)] == ["long"]
    assert batch.seconds(3) == pytest.approx(3 + 12 + 13 + 14)
    assert (batch.left, batch.steps_for(20.0)) == (3, 2)


def test_what_is_cached_is_restored() -> None:
    one = request(0, 201, 2)
    again = RenderedRequest(
        "s", 1, one.computed.head(200).extended(one.answer), one.answer
    )
    _, own = serve([one, again], 0.0, 50.0)
    assert own.reused_tokens == 200
    assert own.ttft_s == pytest.approx(0.25 + 0.01 + 0.01 + 1.5)


def test_a_prompt_waits_for_another_with_the_same_beginning() -> None:
    first = request(0, 1001, 1)
    second = RenderedRequest("s", 1, first.prompt, first.answer)
    _, own = serve([first, second], 0.0, 0.5)
    assert own.reused_tokens == 1000


def test_a_shorter_prompt_comes_first() -> None:
    _, long, short = serve(
        [request(0, 101, 1), request(1, 9001, 1), request(2, 101, 1)], 0.0, 0.1, 0.2
    )
    assert short.begun < long.begun


def test_users_wait_for_answers_and_think() -> None:
    requests = [request(i, 101, 2) for i in range(3)]
    turns = [[Turn(0, (), 0.0), Turn(1, (0,), 7.0)], [Turn(2, (), 3.0)]]
    server = ClockedServer(make_strategy("none"), COSTS)
    served = server.serve(requests, Schedule(turns, users=1)).timings
    assert [own.number for own in served] == [0, 1, 2]
    assert served[1].due == pytest.approx(served[0].ended + 7.0)
    assert served[2].due == pytest.approx(served[1].ended + 3.0)


def test_thinking_begins_when_the_answer_ends_not_after_the_next_chunk() -> None:
    requests = [request(0, 101, 2), request(1, 1001, 1), request(2, 101, 1)]
    turns = [[Turn(0, (), 0.0), Turn(2, (0,), 1.5)], [Turn(1, (), 1.1)]]
    server = ClockedServer(make_strategy("none"), COSTS)
    served = server.serve(requests, Schedule(turns, users=2)).timings
    first, _, third = sorted(served, key=lambda timing: timing.number)
    assert first.ended == pytest.approx(4.01)  # then a chunk is computed, until 5.01
    assert third.due == pytest.approx(4.01 + 1.5)


def test_a_policy_is_told_who_asked_and_when_on_this_clock() -> None:
    strategy = make_strategy("paged", block=1, capacity=10**6)
    recorded = Use("s3", 900.0, 950.0, "tool_use", ("Bash",))
    asked = replace(request(3, 101, 2), use=recorded)
    ClockedServer(strategy, COSTS).serve([asked], Fixed(5.0))
    assert strategy.eviction.use == replace(recorded, t=5.0, ended=5.0 + 1.01 + 2 * 1.5)


def conversation(turns: int, number: int = 0) -> list[RenderedRequest]:
    found, prompt = [], request(number, 150, 0).prompt
    for i in range(turns):
        told = np.arange(40, dtype=np.int32) + 10_000 * number + 2_000 + 100 * i
        found.append(RenderedRequest(f"s{number}", i, prompt, told))
        prompt = prompt.extended(told).extended(told[:30] + np.int32(50))
    return found


@pytest.mark.parametrize("spec", ["paged", "prefix", "block-hash", "none"])
def test_one_user_reuses_what_a_simulation_without_clock_reuses(spec: str) -> None:
    requests = conversation(8)
    turns = [Turn(i, (i - 1,) if i else (), 0.5) for i in range(8)]
    server = ClockedServer(make_strategy(spec, capacity=600), COSTS)
    served = server.serve(requests, Schedule([turns], users=1)).timings
    counted = Simulator(make_strategy(spec, capacity=600))
    wanted = [counted.replay(own).reused_tokens for own in requests]
    assert [own.reused_tokens for own in served] == wanted


def test_the_same_seed_gives_the_same_times() -> None:
    requests = [own for n in range(6) for own in conversation(8, n)]

    def run(seed: int) -> list[Timing]:
        server = ClockedServer(make_strategy("paged", capacity=2000), COSTS)
        return list(server.serve(requests, Poisson(48, 0.05, seed)).timings)

    assert run(1) == run(1) != run(2)


def test_a_service_adds_up() -> None:
    server = ClockedServer(make_strategy("none"), COSTS)
    served = server.serve([request(0, 101, 2), request(1, 101, 2)], Fixed(0.0, 10.0))
    assert served.utilisation == pytest.approx(2 * 4.01 / 14.01)
    assert served.tokens_per_s == pytest.approx(4 / 14.01)
    assert (served.good(2.52), served.good(2.5)) == (1.0, 0.0)
    assert served.goodput(2.52) == pytest.approx(2 / 14.01)
    assert served.quantile(0.5, lambda own: own.ttft_s) == pytest.approx(2.51)


def test_a_calibration_without_decoding_names_the_command() -> None:
    old = COSTS.model_copy(update={"decode": None})
    with pytest.raises(ConfigError, match="mlxlab calibrate"):
        ClockedServer(make_strategy("none"), old)


def test_long_answers_are_no_events() -> None:
    requests = [request(i, 101, 4_000) for i in range(200)]
    started = process_time()
    server = ClockedServer(make_strategy("none"), COSTS)
    server.serve(requests, Poisson(200, 0.01))
    assert process_time() - started < 1.0  # 800,000 tokens


class _ByChunk(ClockedServer):
    """Chooses anew after each chunk."""

    def _compute(self, own: Any, until: float) -> None:
        super()._compute(own, self._now)


@pytest.mark.parametrize("seed", range(4))
def test_chunks_in_one_go_are_those_that_would_be_chosen_one_by_one(seed: int) -> None:
    # The rate falls with the position, so that rivals get their turns in between.
    steep = COSTS.model_copy(update={"prefill": (0.0, 0.01, 1e-3, 1e-5, 0.0, 0.0)})
    drawn = np.random.default_rng(seed)
    lengths = drawn.integers(50, 6000, 40)
    requests = [request(n, int(tokens), 2) for n, tokens in enumerate(lengths)]

    def run(kind: type[ClockedServer]) -> Service:
        server = kind(make_strategy("none"), steep, most=6)
        return server.serve(requests, Poisson(40, 0.02, seed))

    together, one_by_one = run(ClockedServer), run(_ByChunk)
    wanted = [(own.number, own.begun, own.ended) for own in one_by_one.timings]
    found = [(own.number, own.begun, own.ended) for own in together.timings]
    assert found == [pytest.approx(own) for own in wanted]
    assert together.busy_s == pytest.approx(one_by_one.busy_s)
