from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.endless import endless
from bench.prompts import Prompts, Sizes, usual_answer
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import common_prefix
from mlxlab.rendering.renderer import Renderer


def tokens(body: dict[str, Any]) -> Any:
    return Renderer(find_model()).render(body).tokens


def test_agents_share_their_system_text_and_nothing_else() -> None:
    prompts = Prompts(find_model(), Sizes(long=6000))
    first, second, third = map(tokens, prompts.agents(3))
    assert common_prefix(first, second) == pytest.approx(500, abs=40)
    assert common_prefix(first, third) == pytest.approx(500, abs=40)
    assert len(first) < 600


def test_no_load_profits_from_the_one_before() -> None:
    prompts = Prompts(find_model(), Sizes(long=1200))
    heads = [prompts.agents(1)[0], prompts.agents(2)[0], prompts.short("a")]
    heads += [prompts.short("b"), prompts.long("c"), prompts.turns("d", 1)[0]]
    rendered = [tokens(body) for body in heads]
    for i, one in enumerate(rendered):
        for other in rendered[:i]:
            assert common_prefix(one, other) < 16


def test_a_long_prompt_has_its_size() -> None:
    body = Prompts(find_model(), Sizes(long=16_000)).long("a user")
    assert len(tokens(body)) == pytest.approx(16_000, rel=0.02)


def test_turns_repeat_the_turns_before() -> None:
    first, second, third = Prompts(find_model(), Sizes(long=1200)).turns("a user", 3)
    assert second["messages"][:1] == first["messages"]
    assert third["messages"][:3] == second["messages"]
    assert third["system"] == first["system"]


@pytest.mark.parametrize(
    ("window", "long"), [(131_072, 16_000), (8192, 6000), (2048, 1000), (1000, 750)]
)
def test_a_long_prompt_fits_the_window(window: int, long: int) -> None:
    assert Sizes().within(window).long == long


@pytest.mark.parametrize(("weights", "tokens"), [(2**20, 256), (2**27, 32)])
def test_a_large_model_answers_briefly(
    tmp_path: Path, weights: int, tokens: int
) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(weights)
    assert usual_answer(ModelFolder("large", tmp_path, {})) == tokens


def test_a_copy_does_not_end_its_turns() -> None:
    folder = find_model()
    with endless(folder) as copy:
        assert copy.end_ids == {
            folder.tokenizer.convert_tokens_to_ids("</tool_response>")
        }
        assert not copy.end_ids & folder.end_ids
        assert copy.name == folder.name
        assert copy.tokenizer_digest == folder.tokenizer_digest
        weights = copy.path / "model.safetensors"
        assert weights.resolve() == (folder.path / "model.safetensors").resolve()
        config = json.loads((copy.path / "config.json").read_text())
        assert config == {**folder.config, "eos_token_id": min(copy.end_ids)}
    assert not copy.path.exists()
