import json
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module
from mlx_lm import load
from mlx_lm.generate import generate_step
from numpy.typing import NDArray
from safetensors.numpy import save

from mlxlab.models import find_model
from mlxlab.tiny import PATH
from mlxlab.tiny.build import build_weights

pytestmark = pytest.mark.usefixtures("_cpu")

PROMPTS = (
    "Write a haiku about caches.",
    "List the files in this folder and say what each of them does.",
    '{"name": "Bash", "description": "Runs a command.", "parameters": {}}',
)


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


def chat(text: str) -> list[int]:
    tokenizer: Any = find_model().tokenizer
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return list(rendered)


def decode(model: Module, ids: list[int], count: int) -> list[tuple[int, float]]:
    """Greedy tokens, each with the margin of its logit over the second best."""
    steps = []
    for token, logprobs in generate_step(mx.array(ids), model, max_tokens=count):
        second, best = np.partition(np.array(logprobs), -2)[-2:]
        steps.append((int(token), float(best - second)))
    return steps


def last_logits(model: Module, ids: list[int]) -> NDArray[np.float32]:
    return np.array(model(mx.array(ids)[None])[0, -1])


def test_the_committed_weights_are_the_built_ones() -> None:
    config = json.loads((PATH / "config.json").read_text())
    built = save(build_weights(config), {"format": "mlx"})
    assert built == (PATH / "model.safetensors").read_bytes()
    assert len(built) < 6_000_000


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_wander_and_are_well_separated(
    model: Module, prompt: str
) -> None:
    steps = decode(model, chat(prompt), 64)
    assert len({token for token, _ in steps}) >= 20
    margins = [margin for _, margin in steps]
    assert np.median(margins) > 0.1


def test_an_early_token_changes_late_logits(model: Module) -> None:
    ids = chat("one two three four five " * 100)
    changed = [*ids[:3], ids[3] + 1, *ids[4:]]
    difference = last_logits(model, ids) - last_logits(model, changed)
    assert np.abs(difference).max() > 1e-2
