"""Several answers at once: each as alone, short prompts first, shared work once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxlab.engine import (
    Barred,
    BoundedThinking,
    Engine,
    Forced,
    PrefillProgress,
    Request,
    Runner,
    Sampler,
    load_model,
)
from mlxlab.engine.samplers import greedy
from mlxlab.models.folder import find_model
from mlxlab.prompt import Prompt
from mlxlab.strategies import STRATEGIES, Plan, make_strategy

EXACT = [name for name, strategy in STRATEGIES.items() if strategy.exact]


class Answer:
    """One request and what it put."""

    def __init__(self, engine: Engine, prompt: Prompt, n: int = 12, **given: Any):
        self.items: list[Plan | PrefillProgress | int] = []
        self.ended = 0
        self.request = Request(
            engine,
            prompt,
            n,
            given.get("sampler", greedy),
            given.get("processors", ()),
            given.get("stop", frozenset()),
            given.get("put", self.items.append),
            self.end,
        )

    def end(self) -> None:
        self.ended += 1

    @property
    def plan(self) -> Plan:
        (plan,) = [item for item in self.items if isinstance(item, Plan)]
        return plan

    @property
    def ids(self) -> list[int]:
        return [item for item in self.items if isinstance(item, int)]

    @property
    def computed(self) -> int:
        """Tokens of the prompt that were not restored."""
        done = [item for item in self.items if isinstance(item, PrefillProgress)]
        return sum(item.tokens for item in done) - self.plan.reused


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(find_model())


def prompt(seed: int, length: int, head: Sequence[int] = ()) -> Prompt:
    ids = np.random.default_rng(seed).integers(10, 3000, length).tolist()
    return Prompt.of([*head, *ids])


HEAD = prompt(0, 300).tokens.tolist()


def engine(model: Any, name: str = "paged", chunk: int = 64, **given: Any) -> Engine:
    layout = find_model().layout
    return Engine(model, make_strategy(name, layout=layout), chunk=chunk, **given)


def run(answers: Sequence[Answer], runner: Runner | None = None) -> None:
    runner = runner or Runner()
    for answer in answers:
        runner.add(answer.request)
    while runner.step():
        pass
    assert [answer.ended for answer in answers] == [1] * len(answers)


def alone(model: Any, prompt: Prompt, n: int = 12, **given: Any) -> list[int]:
    answer = Answer(engine(model, "none"), prompt, n, **given)
    run([answer])
    return answer.ids


def check(served: Engine) -> None:
    served.strategy.check_integrity()
    assert served.store.nbytes == served.strategy.stored_bytes
    assert served.users == 0


@pytest.mark.parametrize("name", EXACT)
def test_answers_at_once_are_those_alone(name: str, model: Any) -> None:
    prompts = [prompt(i, n, HEAD) for i, n in enumerate((50, 200, 7, 120, 1), 1)]
    served = engine(model, name)
    answers = [Answer(served, own, n=8 + 5 * i) for i, own in enumerate(prompts)]
    run(answers)
    for i, (own, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert answer.ids == alone(model, own, 8 + 5 * i)
        again = served.prefill(own)
        assert again.plan.reused == served.strategy.preview(own).reused
    check(served)


def test_the_same_prefix_is_computed_once(model: Any) -> None:
    served = engine(model)
    answers = [Answer(served, prompt(i, 70, HEAD)) for i in range(1, 5)]
    run(answers)
    assert sum(answer.plan.reused == 0 for answer in answers) == 1
    # Blocks are whole: 256 of the 300 tokens are shared.
    assert sum(answer.computed for answer in answers) == 4 * 369 - 3 * 256
    check(served)


def test_what_a_running_answer_has_computed_is_shared(model: Any) -> None:
    served, runner = engine(model), Runner()
    first = Answer(served, prompt(1, 40, HEAD), n=50)
    runner.add(first.request)
    while len(first.ids) < 5:
        runner.step()
    second = Answer(served, prompt(2, 40, HEAD))
    runner.add(second.request)
    while runner.step():
        pass
    assert second.plan.reused == 256
    assert first.ids == alone(model, prompt(1, 40, HEAD), 50)
    assert second.ids == alone(model, prompt(2, 40, HEAD))
    check(served)


def test_nothing_waits_for_a_strategy_that_stores_nothing(model: Any) -> None:
    answers = [Answer(engine(model, "none"), prompt(i, 9, HEAD)) for i in range(2)]
    run(answers)
    assert [answer.plan.reused for answer in answers] == [0, 0]


def test_a_short_prompt_does_not_wait_for_a_long_one(model: Any) -> None:
    served, runner = engine(model), Runner()
    long = Answer(served, prompt(1, 4000))
    runner.add(long.request)
    for _ in range(3):
        runner.step()
    short = Answer(served, prompt(2, 40))
    runner.add(short.request)
    runner.step()  # its only chunk
    runner.step()
    assert len(short.ids) == 1
    assert not long.ids
    while runner.step():
        pass
    assert long.ids == alone(model, prompt(1, 4000))


def test_a_running_answer_gets_a_token_for_every_chunk(model: Any) -> None:
    served, runner = engine(model), Runner()
    first = Answer(served, prompt(1, 10), n=200)
    runner.add(first.request)
    while not first.ids:
        runner.step()
    long = Answer(served, prompt(2, 2000), n=1)
    runner.add(long.request)
    while not long.ended:
        before = len(first.ids), len(long.items)
        runner.step()
        assert len(first.ids) == before[0] + 1
        assert len(long.items) <= before[1] + 2  # the plan comes with the first


def test_nothing_starves(model: Any) -> None:
    """A long prompt gets its turn although short ones never cease to arrive."""
    now = 0.0
    served, runner = engine(model, "none"), Runner(most=2, clock=lambda: now)
    long = Answer(served, prompt(1, 2000), n=1)
    runner.add(long.request)
    for i in range(200):
        short = Answer(served, prompt(2 + i, 60), n=1)
        runner.add(short.request)
        while not short.ended:
            now += 0.1
            runner.step()
        if long.ended:
            return
    pytest.fail("the long prompt starved")


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_answers_run_than_asked(model: Any, most: int) -> None:
    served, runner = engine(model), Runner(most=most)
    answers = [Answer(served, prompt(i, 30)) for i in range(6)]
    for answer in answers:
        runner.add(answer.request)
    seen = set()
    while runner.step():
        seen.add(runner.running)
    assert max(seen) == most
    assert [len(answer.ids) for answer in answers] == [12] * 6


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_a_cancelled_answer_keeps_what_it_computed(model: Any, tokens: int) -> None:
    served, runner = engine(model), Runner()
    prompts = [prompt(1, 200), prompt(2, 100), prompt(3, 150)]
    answers = [Answer(served, own, n=30) for own in prompts]
    for answer in answers:
        runner.add(answer.request)
    while len(answers[1].ids) < tokens or not answers[1].items:
        runner.step()
    runner.cancel(answers[1].request)
    runner.cancel(answers[1].request)
    while runner.step():
        pass
    assert [answer.ended for answer in answers] == [1, 1, 1]
    for i in (0, 2):
        assert answers[i].ids == alone(model, prompts[i], 30)
    assert served.strategy.preview(prompts[1]).reused >= 64
    check(served)


def test_an_error_ends_its_own_answer_only(model: Any) -> None:
    def broken(after: int) -> Callable[..., mx.array]:
        left = iter(range(after))

        def sampler(*given: mx.array) -> mx.array:
            if next(left, None) is None:
                raise KeyError("gone")
            return given[-1] if len(given) > 1 else greedy(given[0])

        return sampler

    def put(item: Any) -> None:
        if isinstance(item, int):
            raise OSError("cannot be put")

    served = engine(model)
    answers = [
        Answer(served, prompt(1, 100)),
        Answer(served, prompt(2, 90), sampler=broken(4)),
        Answer(served, prompt(3, 80), processors=[broken(2)]),
        Answer(served, prompt(4, 70), put=put),
        Answer(served, prompt(5, 60), n=20),
    ]
    run(answers)
    kinds = [type(answer.request.error) for answer in answers]
    assert kinds == [type(None), KeyError, KeyError, OSError, type(None)]
    assert len(answers[1].ids) == 3
    for i, n in ((0, 12), (4, 20)):
        assert answers[i].ids == alone(model, answers[i].request.prompt, n)
    check(served)


def test_the_cache_is_filled_while_there_is_nothing_else_to_do(model: Any) -> None:
    served, runner = engine(model), Runner(most=1)
    fill = Answer(served, prompt(1, 1000), n=0)
    runner.add(fill.request)
    for _ in range(4):
        runner.step()
    computed = fill.computed
    assert 0 < computed < 999
    first, second = (Answer(served, prompt(i, 200), n=5) for i in (2, 3))
    runner.add(first.request)
    runner.add(second.request)
    while not second.ids:
        runner.step()
        assert (fill.computed, fill.ended) == (computed, 0)
    while runner.step():
        pass
    assert fill.request.error is None
    assert served.strategy.preview(prompt(1, 1000)).reused == 960
    for answer, seed in ((first, 2), (second, 3)):
        assert answer.ids == alone(model, prompt(seed, 200), 5)
    check(served)


def test_an_answer_waits_for_a_prefix_that_is_being_filled(model: Any) -> None:
    served, runner = engine(model), Runner()
    fill = Answer(served, prompt(1, 500, HEAD), n=0)
    runner.add(fill.request)
    runner.step()
    answer = Answer(served, prompt(2, 70, HEAD))
    runner.add(answer.request)
    while not answer.ended:
        runner.step()
    assert answer.plan.reused == 256
    assert fill.computed <= 320  # the chunk that ends behind the prefix is the last
    assert answer.ids == alone(model, prompt(2, 70, HEAD))


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "greedy": lambda: greedy,
    "forced": lambda: Forced([5, 6, 7], greedy),
    "barred": lambda: Barred(range(0, 3000, 2), greedy),
    "thinking": lambda: BoundedThinking(
        greedy, start=1, closing=[2, 3], stop=[4], budget=5, opened=True
    ),
}


def test_each_answer_has_its_own_sampler(model: Any) -> None:
    served = engine(model)
    prompts = [prompt(i, 20 * i) for i in range(1, 5)]
    answers = [
        Answer(served, own, sampler=make())
        for own, make in zip(prompts, SAMPLERS.values(), strict=True)
    ]
    run(answers)
    for own, make, answer in zip(prompts, SAMPLERS.values(), answers, strict=True):
        assert answer.ids == alone(model, own, sampler=make())


def test_a_model_that_cannot_be_batched_runs_beside_others(model: Any) -> None:
    served = engine(model, batched=False)
    prompts = [prompt(i, 50 * i) for i in range(1, 4)]
    answers = [Answer(served, own) for own in prompts]
    run(answers)
    for own, answer in zip(prompts, answers, strict=True):
        assert answer.ids == alone(model, own)
    check(served)


def test_engines_of_one_model_share_a_batch(model: Any) -> None:
    engines = [engine(model, name) for name in ("paged", "prefix", "mlx-lm")]
    prompts = [prompt(i, 60) for i in range(3)]
    answers = [Answer(own, p) for own, p in zip(engines, prompts, strict=True)]
    run(answers)
    for own, p, answer in zip(engines, prompts, answers, strict=True):
        assert answer.ids == alone(model, p)
        check(own)


@given(data=st.data())
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("name", EXACT)
def test_random_traffic_is_exact(name: str, model: Any, data: st.DataObject) -> None:
    """Prompts arrive, share, and are cancelled at random; the rest are as alone."""
    served, runner = engine(model, name, chunk=32), Runner(most=3)
    live: list[Answer] = []
    for _ in range(data.draw(st.integers(2, 12))):
        action = data.draw(st.sampled_from(["add", "step", "step", "cancel"]))
        if action == "add":
            shared = data.draw(st.sampled_from([0, 100, 290, 300]))
            own = prompt(data.draw(st.integers(0, 3)), 40, HEAD[:shared])
            live.append(Answer(served, own, n=data.draw(st.integers(0, 6))))
            runner.add(live[-1].request)
        elif action == "cancel" and live:
            cancelled = live.pop(data.draw(st.integers(0, len(live) - 1)))
            runner.cancel(cancelled.request)
        for _ in range(data.draw(st.integers(0, 4))):
            runner.step()
    while runner.step():
        pass
    ended = [answer for answer in live if answer.ended]
    assert len(ended) == len(live)
    for answer in ended:
        assert answer.request.error is None
        n = answer.request.max_tokens
        assert answer.ids == (alone(model, answer.request.prompt, n) if n else [])
    check(served)


def test_answers_go_on_between_long_chunks(model: Any) -> None:
    """For a second of a chunk they get a fifth of a second, not one token."""
    now = 0.0

    def tick(_: Any) -> None:
        nonlocal now
        now += 1.0  # each token and each chunk takes a second

    served, runner = engine(model, "none"), Runner(clock=lambda: now)
    first = Answer(served, prompt(1, 10), n=300)
    runner.add(first.request)
    while not first.ids:
        runner.step()

    def chunk(item: Any) -> None:
        nonlocal now
        now += 50.0

    first.request.put = tick
    long = Answer(served, prompt(2, 640), n=1, put=chunk)
    runner.add(long.request)
    while not long.ended:
        runner.step()
    # Ten chunks of 50 seconds, and the plan: ten tokens between two of them.
    assert 90 <= len(first.request.answer) <= 130


def test_a_prompt_that_another_begins_with_is_shared_while_it_is_answered(
    model: Any,
) -> None:
    served, runner = engine(model, "prefix"), Runner()
    first = Answer(served, prompt(1, 40, HEAD), n=50)
    runner.add(first.request)
    while len(first.ids) < 5:
        runner.step()
    longer = Prompt.of([*first.request.prompt.tokens.tolist(), *range(10, 90)])
    second = Answer(served, longer)
    runner.add(second.request)
    while runner.step():
        pass
    assert (first.request.error, second.request.error) == (None, None)
    assert second.plan.reused == len(first.request.prompt)
    assert len(first.ids) == 50
    assert second.ids == alone(model, longer)
    check(served)
