import json
from itertools import islice
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import load as load_for_mlx

from mlxlab.models.folder import find_model
from mlxlab.models.tiny import PATH
from training.corpus import read_corpus
from training.tokenizer import build_tokenizer

tokenizer: Any = find_model().tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
WORDS = st.text("aeinorst", min_size=1, max_size=12)


def encode(text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@given(TEXT)
def test_any_text_survives(text: str) -> None:
    assert tokenizer.decode(encode(text)) == text


@given(TEXT, TEXT)
def test_nothing_merges_across_a_newline_run(before: str, after: str) -> None:
    before, after = before + "\n", after.lstrip("\r\n")
    assert encode(before + after) == encode(before) + encode(after)


@given(st.lists(WORDS, min_size=1), st.sampled_from(["\n", "\t", '"', "\\", "é", "/"]))
def test_a_word_in_json_text_is_cut_like_the_same_word_in_plain_text(
    words: list[str], between: str
) -> None:
    escaped = json.dumps(between)[1:-1]
    for word in words:
        assert encode(escaped + word) == encode(escaped) + encode(word)


def test_digits_stand_alone() -> None:
    assert [tokenizer.decode([i]) for i in encode("20,8")] == ["2", "0", ",", "8"]


def test_tags_and_control_tokens_are_one_token_each() -> None:
    tags = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    tags += ["<tool_response>", "</tool_response>"]
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = encode("".join(tags + control))
    assert tokenizer.convert_ids_to_tokens(ids) == tags + control
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(tags)


def test_mlx_lm_finds_thinking_tool_calls_and_the_end() -> None:
    wrapper = load_for_mlx(PATH)
    assert wrapper.has_thinking
    assert wrapper.has_tool_calling
    assert wrapper.tool_parser('{"name": "f", "arguments": {}}')["name"] == "f"
    assert wrapper.eos_token_ids == set(encode("<|im_end|>"))


def test_training_is_deterministic_and_has_the_committed_settings() -> None:
    first, second = (
        build_tokenizer(islice(read_corpus(), 200), 1024).to_str() for _ in range(2)
    )
    assert first == second
    built = json.loads(first)
    committed = json.loads((PATH / "tokenizer.json").read_text(encoding="utf-8"))
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert built[part] == committed[part]
    assert len(built["model"]["vocab"]) == 1024 - len(built["added_tokens"])
