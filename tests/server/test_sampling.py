"""Whose wish holds: the alias's over the client's over the model's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.decoding import Grammar
from mlxlab.engine import Sampler, Worker
from mlxlab.models.config import GenerationConfig
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.server import sampling
from mlxlab.server.sampling import sampling_of, thinking_budget, thinking_sampler
from mlxlab.server.schema import InferenceRequest
from tests.support.endpoint import ask

ENABLED = {"type": "enabled", "budget_tokens": 1024}
KEYS = ("temperature", "top_p", "top_k", "min_p")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def tiny() -> ModelFolder:
    return find_model()


def request(**changes: Any) -> InferenceRequest:
    return InferenceRequest.model_validate(ask(**changes))


class Folder(ModelFolder):
    """The bundled model, sampled otherwise by its makers."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        tiny = find_model()
        super().__init__(tiny.name, tiny.path, tiny.config)
        self.__dict__["_generation_settings"] = GenerationConfig(**said)


def made(
    monkeypatch: pytest.MonkeyPatch,
    asked: Mapping[str, float],
    alias: Mapping[str, float],
    model: Mapping[str, float],
) -> dict[str, float]:
    """What mlx-lm is told, by our names."""
    told: dict[str, float] = {}
    monkeypatch.setattr(sampling, "make_sampler", lambda **given: told.update(given))
    sampling_of(request(**asked), alias, Folder(model))()
    told["temperature"] = told.pop("temp")
    return told


@pytest.mark.parametrize(
    ("asked", "alias", "model", "expected"),
    [
        ({}, {}, {}, (0.0, 1.0, 0, 0.0)),
        ({}, {}, {"temperature": 0.6, "top_k": 20}, (0.6, 1.0, 20, 0.0)),
        ({"temperature": 1.0}, {}, {"temperature": 0.6}, (1.0, 1.0, 0, 0.0)),
        ({"temperature": 0.0}, {}, {"temperature": 0.6}, (0.0, 1.0, 0, 0.0)),
        ({"temperature": 1.0}, {"temperature": 0.2}, {}, (0.2, 1.0, 0, 0.0)),
        ({"temperature": 1.0}, {"temperature": 0.0}, {}, (0.0, 1.0, 0, 0.0)),
        ({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, (0.0, 0.9, 5, 0.1)),
        ({"top_k": 7, "top_p": 0.5}, {"top_p": 0.8}, {"top_k": 9}, (0.0, 0.8, 7, 0.0)),
        # Next to nothing is nothing.
        ({"temperature": 1e-5}, {}, {}, (0.0, 1.0, 0, 0.0)),
        ({"temperature": 1.0, "top_p": 0.0}, {}, {}, (0.0, 0.0, 0, 0.0)),
    ],
)
def test_alias_over_request_over_model(
    asked: dict[str, float],
    alias: dict[str, float],
    model: dict[str, float],
    expected: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = made(monkeypatch, asked, alias, model)
    assert tuple(told[key] for key in KEYS) == expected


def test_whole_numbers_reach_the_library_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert type(made(monkeypatch, {}, {"top_k": 5.0}, {})["top_k"]) is int


def test_each_answer_has_a_sampler_of_its_own() -> None:
    make = sampling_of(request(temperature=1.0), {}, find_model())
    assert make() is not make()


def test_more_choices_than_there_are_ids_are_all_of_them(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"top_k": 10**6, "temperature": 1.0}
    assert made(monkeypatch, asked, {}, {})["top_k"] == 0
    monkeypatch.undo()
    make = sampling_of(request(**asked), {}, find_model())
    assert len(given_ids(worker, make, 2)) == 2


@pytest.mark.parametrize(
    ("changes", "most", "budget"),
    [
        # A budget is the client's; an alias can only lower it.
        ({"thinking": {"type": "enabled", "budget_tokens": 1500}}, None, 1500),
        ({"thinking": {"type": "enabled", "budget_tokens": 1500}}, 100, 100),
        ({"thinking": {"type": "enabled", "budget_tokens": 1500}}, 9000, 1500),
        ({"thinking": {"type": "enabled", "budget_tokens": 1500}}, 0, 0),
        # Else three quarters of the room, and what the effort says.
        ({"thinking": {"type": "adaptive"}}, None, 30_000),
        ({"thinking": {"type": "adaptive"}}, 500, 500),
        ({}, None, 30_000),
        ({"output_config": {"effort": "low"}}, None, 1024),
        ({"output_config": {"effort": "medium"}}, None, 4096),
        ({"output_config": {"effort": "high"}}, None, 16_384),
        ({"output_config": {"effort": "xhigh"}}, None, 30_000),
        ({"output_config": {"effort": "max"}}, None, 30_000),
        ({"output_config": {"effort": "low"}}, 64, 64),
        ({"output_config": {"effort": "high"}, "max_tokens": 100}, None, 75),
        # A budget without room for text is cut, below the API's own least too.
        ({"thinking": ENABLED | {"budget_tokens": 40_000}}, None, 30_000),
        ({"thinking": ENABLED | {"budget_tokens": 39_999}}, None, 30_000),
        ({"thinking": ENABLED, "max_tokens": 1025}, None, 768),
        ({"thinking": ENABLED, "max_tokens": 1024}, 100, 100),
        ({"thinking": ENABLED, "max_tokens": 500}, None, 375),
        ({"thinking": ENABLED, "max_tokens": 50}, None, 37),
        ({"thinking": ENABLED, "max_tokens": 20}, None, 12),
        ({"thinking": ENABLED, "max_tokens": 10}, None, 2),
        *(({"thinking": ENABLED, "max_tokens": n}, None, 0) for n in (0, 1, 2, 9)),
    ],
)
def test_budgets(changes: dict[str, Any], most: int | None, budget: int) -> None:
    asked = request(**{"max_tokens": 40_000, **changes})
    assert thinking_budget(asked, most) == budget


@given(max_tokens=st.integers(1, 200_000), most=st.none() | st.integers(0, 50_000))
def test_without_a_budget_there_is_always_room_for_an_answer(
    max_tokens: int, most: int | None
) -> None:
    assert thinking_budget(request(max_tokens=max_tokens), most) < max_tokens


@given(
    max_tokens=st.integers(10, 200_000),
    asked=st.integers(1024, 300_000),
    window=st.none() | st.integers(0, 5000),
)
def test_a_budget_leaves_room_for_its_tags_and_text(
    max_tokens: int, asked: int, window: int | None
) -> None:
    thinking = {"type": "enabled", "budget_tokens": asked}
    body = request(max_tokens=max_tokens, thinking=thinking)
    most = max_tokens if window is None else min(window, max_tokens)
    budget = thinking_budget(body, None, most)
    assert 0 <= budget <= asked
    if budget:
        assert most - budget >= 8
        assert most - budget >= most / 4
    assert (budget == 0) == (most < 10)


class Tags:
    """Ids of a model's tags, by their names."""

    def __init__(self, folder: ModelFolder) -> None:
        self.grammar = Grammar.of(folder)
        self.start = self.grammar.think_start_ids[0]
        self.end = self.grammar.think_end_ids[0]
        self.newline, self.blank = (
            folder.tokenizer.encode(text)[0] for text in ("\n", "\n\n")
        )


@pytest.fixture(scope="module")
def tags(tiny: ModelFolder) -> Tags:
    return Tags(tiny)


def given_ids(worker: Worker, make: Any, n: int) -> list[int]:
    def run() -> list[int]:
        sampler: Sampler = make()
        return [cast("int", sampler(mx.zeros((1, 8704))).item()) for _ in range(n)]

    return worker.call(run)


def sevens() -> Sampler:
    return lambda logprobs: mx.array([7])


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("budget", [0, 1, 3])
def test_reasoning_opens_if_it_must_and_closes_in_time(
    worker: Worker,
    tiny: ModelFolder,
    tags: Tags,
    opened: bool,
    force: bool,
    budget: int,
) -> None:
    make = thinking_sampler(
        sevens, tags.grammar, tiny, opened=opened, force=force, budget=budget
    )
    found = given_ids(worker, make, 9)
    opening = [tags.start, tags.newline] if force and not opened else []
    if not (force or opened):
        assert found == [7] * 9
        return
    assert found[: len(opening)][:1] == opening[:1]
    assert found.count(tags.end) == 1
    close = found.index(tags.end)
    assert close == budget + len(opening[:1])
    # What follows the tag is the template's, then the answer.
    assert found[close + 1] == tags.blank
    assert found[close + 2 :] == [7] * len(found[close + 2 :])


def test_a_model_without_tags_is_left_alone(tiny: ModelFolder) -> None:
    bare = Grammar(detokenizer=Grammar.of(tiny).detokenizer)
    make = thinking_sampler(sevens, bare, tiny, opened=False, force=True, budget=1)
    assert make is sevens
