"""Forced, barred and constrained ids, in a real decode loop."""

import json
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_sampler

from mlxlab.engine import Barred, BoundedThinking, Engine, Forced, Worker, load_model
from mlxlab.engine.json_constraint import JsonConstraint, constraint_tokenizer
from mlxlab.errors import RequestError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt
from mlxlab.strategies import make_strategy

START, CLOSING, STOP = 8700, (8701, 40), 8702


@pytest.fixture(scope="module")
def tiny() -> ModelFolder:
    return find_model()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def engine(worker: Worker, tiny: ModelFolder) -> Engine:
    return Engine(worker.call(load_model, tiny), make_strategy("none"))


def answer(worker: Worker, engine: Engine, n: int, **options: Any) -> list[int]:
    """``n`` ids after a fixed prompt."""

    def run() -> list[int]:
        items = engine.stream(Prompt.of(range(100)), max_tokens=n, **options)
        return [item for item in items if isinstance(item, int)]

    return worker.call(run)


class Recited:
    """Gives ids unless their log probability has been taken away."""

    def __init__(self, *ids: int, instead: int = 7) -> None:
        self.ids = iter(ids)
        self.instead = instead

    def __call__(self, logprobs: mx.array) -> mx.array:
        id = next(self.ids, self.instead)
        barred = logprobs[0, id] == -float("inf")
        return mx.where(barred, mx.array([self.instead]), mx.array([id]))


def bounded(*ids: int, budget: int | None = None, opened: bool) -> BoundedThinking:
    return BoundedThinking(
        Recited(*ids),
        start=START,
        closing=CLOSING,
        stop=[STOP],
        budget=budget,
        opened=opened,
    )


def test_forced_ids_come_first(worker: Worker, engine: Engine) -> None:
    sampler = Forced([5, 6], lambda logprobs: mx.argmax(logprobs, axis=-1))
    forced = answer(worker, engine, 8, sampler=sampler)
    assert forced[:2] == [5, 6]
    longer = Prompt.of([*range(100), 5, 6])
    free = worker.stream(engine.stream, longer, max_tokens=6)
    assert forced[2:] == [item for item in free if isinstance(item, int)]


def test_ids_that_the_model_has_not_are_barred_without_harm() -> None:
    """mlx would write behind the last log probability, or at the end for -1."""
    seen: list[mx.array] = []

    def watched(logprobs: mx.array) -> mx.array:
        seen.append(logprobs)
        return mx.argmax(logprobs, axis=-1)

    Barred([2, 2**31 - 1, -1, 8704], watched)(mx.zeros((1, 4)))
    assert seen[0].tolist() == [[0.0, 0.0, -float("inf"), 0.0]]


def test_barred_ids_never_come(worker: Worker, engine: Engine) -> None:
    first = answer(worker, engine, 1)[0]
    sampler = Barred([first], make_sampler(temp=0.0))
    assert first not in answer(worker, engine, 8, sampler=sampler)


@pytest.mark.parametrize(
    ("ids", "budget", "opened", "expected"),
    [
        # The budget is spent: closed, with the ids that the template adds.
        ((1, 2, 3, 4, 5, 6, 8), 3, True, (1, 2, 3, *CLOSING, 6, 8)),
        ((START, 1, 2, 3, 4, 5, 6), 2, False, (START, 1, 2, *CLOSING, 5, 6)),
        # Closed by the model in time: left alone.
        ((1, CLOSING[0], 3, 4, 5, 6, 8), 3, True, (1, CLOSING[0], 3, 4, 5, 6, 8)),
        # Closed by the model in the very step that spends it.
        ((1, 2, CLOSING[0], 4, 5, 6, 8), 2, True, (1, 2, *CLOSING, 5, 6, 8)),
        # No thinking: no budget.
        ((1, 2, 3, 4, 5, 6, 8), 2, False, (1, 2, 3, 4, 5, 6, 8)),
        ((1, 2, 3, START, 5, 6, 8), 2, False, (1, 2, 3, START, 5, 6, 8)),
        # The end of the answer is barred inside thinking only.
        ((1, STOP, CLOSING[0], 4, STOP), None, True, (1, 7, CLOSING[0], 4, STOP)),
    ],
)
def test_reasoning_is_bounded(
    ids: tuple[int, ...],
    budget: int | None,
    opened: bool,
    expected: tuple[int, ...],
    worker: Worker,
    engine: Engine,
) -> None:
    sampler = bounded(*ids, budget=budget, opened=opened)
    found = answer(worker, engine, len(ids), sampler=sampler, stop={STOP})
    assert found == list(expected)


def test_a_constrained_answer_is_json_of_the_schema(
    worker: Worker, engine: Engine, tiny: ModelFolder
) -> None:
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 12}},
        "required": ["title"],
        "additionalProperties": False,
    }
    constraint = JsonConstraint(constraint_tokenizer(tiny.tokenizer), schema)
    stop = {tiny.tokenizer.eos_token_id}
    ids = answer(worker, engine, 100, processors=[constraint], stop=stop)
    assert ids[-1] in stop
    value = json.loads(str(tiny.tokenizer.decode(ids[:-1])))
    assert list(value) == ["title"]
    assert 0 < len(value["title"]) <= 12


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nope"},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"type": "string", "pattern": "(a+)+$(?=b)"},
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(
    schema: dict[str, Any], tiny: ModelFolder
) -> None:
    with pytest.raises(RequestError, match=r"^output_config\.format\.schema: "):
        JsonConstraint(constraint_tokenizer(tiny.tokenizer), schema)
