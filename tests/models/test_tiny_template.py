"""Every turn's prompt extends the one before it, in text and in token ids."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlxlab.models.folder import find_model

tokenizer: Any = find_model().tokenizer

Messages = list[dict[str, Any]]

# Half of it is what merges most easily with the template's own text.
TEXT = st.builds(
    "{}{}".format,
    st.sampled_from(["", "\n", "\r\n", " \n", "\t"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.text(" \r\n\t<>{}\\\"'abz0é", max_size=20),
)
ARGUMENTS = st.dictionaries(TEXT, TEXT | st.integers() | st.none(), max_size=3)
CALL = st.builds(
    lambda name, arguments: {"function": {"name": name, "arguments": arguments}},
    TEXT,
    ARGUMENTS,
)


def answers(reasoning: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": TEXT},
        optional={
            "reasoning_content": reasoning,
            "tool_calls": st.lists(CALL, max_size=2),
        },
    )


ANY_ANSWER = answers(TEXT)
MESSAGE = ANY_ANSWER | st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "tool"]), "content": TEXT}
)
MESSAGES = st.lists(MESSAGE, min_size=1, max_size=5)
TOOLS = st.none() | st.lists(ARGUMENTS, min_size=1, max_size=2)


def render(messages: Messages, tools: Messages | None, **options: bool) -> str:
    return str(
        tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    )


def assert_extends(longer: str, shorter: str) -> None:
    assert longer.startswith(shorter)
    short_ids = tokenizer.encode(shorter)
    assert tokenizer.encode(longer)[: len(short_ids)] == short_ids


@given(MESSAGES, TOOLS, st.booleans(), st.data())
def test_history_is_append_only(
    messages: Messages, tools: Messages | None, thinking: bool, data: st.DataObject
) -> None:
    # Without thinking the prompt itself holds the empty reasoning of the answer.
    answer = data.draw(ANY_ANSWER if thinking else answers(st.just("")))
    following = data.draw(st.lists(MESSAGE, max_size=3))
    prompt = render(
        messages, tools, add_generation_prompt=True, enable_thinking=thinking
    )
    answered = render([*messages, answer], tools, enable_thinking=thinking)
    later = render(
        [*messages, answer, *following],
        tools,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    assert_extends(answered, prompt)
    assert_extends(later, answered)


def test_a_conversation_reads_as_expected() -> None:
    tool = {"type": "function", "function": {"name": "Größe", "parameters": {}}}
    call = {"function": {"name": "Größe", "arguments": {"b": 1, "a": "ü"}}}
    messages: Messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "\n  How big?\n"},
        {
            "role": "assistant",
            "content": "Look:",
            "reasoning_content": "Hm.",
            "tool_calls": [call, call],
        },
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "system", "content": "Hurry."},
    ]
    text = render(messages, [tool], add_generation_prompt=True)
    head, turns = text.split("<|im_end|>\n", maxsplit=1)
    assert head.startswith("<|im_start|>system\nBe brief.\n\n# ")
    line = '{"type": "function", "function": {"name": "Größe", "parameters": {}}}'
    assert f"\n<tools>\n{line}\n</tools>\n" in head
    called = (
        '<tool_call>\n{"name": "Größe", "arguments": {"b": 1, "a": "ü"}}\n</tool_call>'
    )
    assert turns == (
        "<|im_start|>user\n  How big?\n<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\nHm.\n</think>\n\nLook:\n{called}\n{called}"
        "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n"
        "<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>system\nHurry.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_thinking_every_turn_without_reasoning_has_an_empty_block() -> None:
    messages: Messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
    ]
    options = {"add_generation_prompt": True, "enable_thinking": False}
    empty = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert render(messages, None, **options).count(empty) == 2
    assert "think" not in render(messages, None, add_generation_prompt=True)


def test_tools_come_first_even_without_a_system_message() -> None:
    text = render([{"role": "user", "content": "hi"}], [{"name": "f"}])
    assert text.startswith("<|im_start|>system\n# ")
    assert text.index('\n{"name": "f"}\n') < text.index("<|im_start|>user\nhi")
