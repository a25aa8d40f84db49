import json
from collections.abc import Iterator

import mlx.core as mx
import pytest
from mlx.nn.layers.base import Module
from mlx_lm import load

from mlxlab.engine import Engine
from mlxlab.models.folder import find_model
from mlxlab.models.tiny import PATH
from mlxlab.rendering.renderer import Renderer
from mlxlab.strategies import make_strategy
from training.evaluate import evaluate
from training.tasks import Kind, TaskWriter

pytestmark = pytest.mark.usefixtures("_cpu")


@pytest.fixture
def _cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="module")
def model() -> Module:
    loaded: Module = load(str(PATH))[0]
    return loaded


def test_weights_are_small_enough_to_be_bundled() -> None:
    assert (PATH / "model.safetensors").stat().st_size < 12_000_000


def test_recalls_what_stands_in_its_context(model: Module) -> None:
    rows = evaluate(model, lengths=(512, 2048), dialogues=4)
    # The model card has the figures of a larger sample.
    assert rows.right.mean() > 0.9
    assert set(rows.kind) == set(Kind)


def test_answers_through_the_whole_stack(model: Module) -> None:
    """Not teacher-forced: a thought, a well-formed call, an end."""
    task = next(
        task
        for task in TaskWriter(held_out=True).dialogue(2, 1200)
        if task.kind is Kind.CALL
    )
    folder = find_model()
    prompt = Renderer(folder, ()).render(task.request)
    engine = Engine(model, make_strategy("none"))
    ids = [
        item
        for item in engine.stream(prompt, max_tokens=60, stop=folder.end_ids)
        if isinstance(item, int)
    ]
    text = str(folder.tokenizer.decode(ids))
    thought, call = task.answer
    assert text.startswith(f"<think>\n{thought['thinking']}\n</think>")
    assert ids[-1] in folder.end_ids
    body = text.partition("<tool_call>")[2].partition("</tool_call>")[0]
    assert json.loads(body) == {"name": call["name"], "arguments": call["input"]}
