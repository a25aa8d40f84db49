from __future__ import annotations

import pytest

from bench.architectures import ARCHITECTURES, opened
from mlxlab.errors import ModelError
from mlxlab.models.folder import BUNDLED, find_model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_built_for_long_prompts_and_removed(name: str) -> None:
    with opened(name) as folder:
        assert folder.name == name
        assert folder.layout.checkpoint_bytes() > 0
        assert folder.window > 20_000
        messages = [{"role": "user", "content": "Hi."}]
        prompt = folder.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        assert str(prompt).endswith("<think>\n") == (name == "qwen3_5")
    assert not folder.path.exists()


def test_other_names_are_those_of_models() -> None:
    with opened(BUNDLED) as folder:
        assert folder == find_model(BUNDLED)
    with pytest.raises(ModelError, match="unknown model"), opened("qwen"):
        pass
