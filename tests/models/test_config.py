"""Settings of strangers: what mlxlab uses of them is checked, whatever they hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from tests.support.endpoint import copy_tiny


def with_generation(folder: Path, **settings: Any) -> ModelFolder:
    path = copy_tiny(folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return find_model(path)


def test_settings_of_sampling_are_numbers(tmp_path: Path) -> None:
    folder = with_generation(
        tmp_path / "model", temperature="0.5", top_p=None, top_k=20.0, top_a=7
    )
    assert folder.sampling == {"temperature": 0.5, "top_k": 20}


def test_a_greedy_model_has_no_settings_of_sampling(tmp_path: Path) -> None:
    folder = with_generation(tmp_path / "model", do_sample=False, temperature=0.5)
    assert folder.sampling == {}


def test_ids_that_end_an_answer_come_from_three_places(tmp_path: Path) -> None:
    folder = with_generation(tmp_path / "model", eos_token_id=[7, 8])
    assert folder.end_ids == {7, 8, 8697}


def test_a_window_is_never_longer_than_ids_count(tmp_path: Path) -> None:
    path = copy_tiny(tmp_path / "model", max_position_embeddings=10**30)
    assert find_model(path).window == 2**31 - 1


def test_settings_of_the_text_model_come_first(tmp_path: Path) -> None:
    text = {"max_position_embeddings": 77, "torch_dtype": "float16", "vocab_size": 9}
    path = copy_tiny(tmp_path / "model", text_config=text, dtype=None)
    folder = find_model(path)
    assert (folder.window, folder.dtype) == (77, "float16")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers: .* at most 10000"),
        ({"text_config": {"num_local_experts": 10**7}}, "num_local_experts"),
        ({"text_config": {"max_position_embeddings": 0}}, "max_position_embeddings"),
        ({"text_config": 7}, "text_config"),
    ],
)
def test_settings_that_mean_nothing_are_named(
    settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = copy_tiny(tmp_path / "model", **settings)
    with pytest.raises(ModelError, match=f"config.json: {problem}"):
        find_model(path)


@pytest.mark.parametrize("id", [8704, 2**31 - 1, -1])
def test_the_model_has_each_id(id: int) -> None:
    with pytest.raises(ModelError, match=f"id {id} .* vocab_size of 8704"):
        find_model().require_ids(np.array([5, id, 6], dtype=np.int32))


def test_a_tokenizer_may_have_ids_that_the_model_has_not(tmp_path: Path) -> None:
    path = copy_tiny(tmp_path / "model")
    file = Path(path, "tokenizer.json")
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["Z"] = 9_000_000
    file.write_text(json.dumps(tokenizer))
    renderer = Renderer(find_model(path))
    ask = {"model": "any", "messages": [{"role": "user", "content": "Hi"}]}
    assert len(renderer.render(ask))
    ask["messages"] = [{"role": "user", "content": "Z"}]
    with pytest.raises(ModelError, match="id 9000000"):
        renderer.render(ask)
    answer = {"content": [{"type": "text", "text": "Z"}]}
    ask["messages"] = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ModelError, match="id 9000000"):
        renderer.render_exchange(ask, answer)


def test_a_tokenizer_may_give_up_on_a_text(tmp_path: Path) -> None:
    path = copy_tiny(tmp_path / "model")
    file = Path(path, "tokenizer.json")
    tokenizer = json.loads(file.read_text())
    pattern = {"Regex": "(a+)+$|(.+)+x"}
    split: dict[str, Any] = {"type": "Split", "pattern": pattern}
    split |= {"behavior": "Isolated", "invert": False}
    file.write_text(json.dumps(tokenizer | {"pre_tokenizer": split}))
    renderer = Renderer(find_model(path))
    ask = {"model": "any", "messages": [{"role": "user", "content": "a" * 60 + "b"}]}
    with pytest.raises(ModelError, match="cannot encode this text: PanicException"):
        renderer.render(ask)
    with pytest.raises(ModelError, match="cannot encode this text: PanicException"):
        renderer.model.encode("a" * 60 + "b")
