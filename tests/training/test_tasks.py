import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxlab.models.folder import find_model
from mlxlab.rendering.messages import parse_request
from training.corpus import read_prose
from training.lessons import Lessons
from training.tasks import WORDS, Kind, TaskWriter

writer = TaskWriter(held_out=True)

DIALOGUES = st.tuples(st.integers(0, 10**9), st.sampled_from([64, 256, 700, 2048]))


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(held_out=True)


def settings_of(text: str) -> dict[str, str]:
    lines = (line.split("=") for line in text.splitlines() if line.count("=") == 1)
    return {key: value for key, value in lines if key in WORDS and value in WORDS}


def sources(request: Any) -> dict[Kind, dict[str, str]]:
    """Settings by where they are planted."""
    tools = [tool["description"] for tool in request["tools"]]
    results = [
        block["content"]
        for message in request["messages"]
        if message["role"] == "user" and isinstance(message["content"], list)
        for block in message["content"]
    ]
    return {
        Kind.SYSTEM: settings_of(request["system"]),
        Kind.TOOLS: settings_of("\n".join(tools)),
        Kind.RESULT: settings_of("\n".join(results)),
    }


@settings(max_examples=40)
@given(DIALOGUES)
def test_every_answer_stands_where_its_kind_says(dialogue: tuple[int, int]) -> None:
    for task in writer.dialogue(*dialogue):
        parse_request(task.request, "task")
        planted = sources(task.request)
        thought, block = task.answer
        key, value = thought["thinking"].split("=")
        if task.kind is Kind.CALL:
            assert planted[Kind.SYSTEM][key] == value == block["name"]
            assert block["name"] in {tool["name"] for tool in task.request["tools"]}
            assert (
                f"({block['input']['key']})" in task.request["messages"][-1]["content"]
            )
        else:
            assert planted[task.kind][key] == value == block["text"]


@settings(max_examples=20)
@given(DIALOGUES)
def test_keys_are_unique_and_turns_extend_each_other(dialogue: tuple[int, int]) -> None:
    tasks = writer.dialogue(*dialogue)
    planted = sources(tasks[-1].request)
    assert len(set().union(*planted.values())) == sum(map(len, planted.values()))
    for earlier, later in itertools.pairwise(tasks):
        messages = earlier.request["messages"]
        assert later.request["messages"][: len(messages)] == messages


def test_equal_seeds_give_equal_dialogues() -> None:
    again = TaskWriter(held_out=True)
    assert writer.dialogue(3, 900) == again.dialogue(3, 900) != writer.dialogue(4, 900)


def test_held_out_text_is_not_trained_on() -> None:
    trained = set(read_prose(held_out=False))
    held_out = list(read_prose(held_out=True))
    assert len(held_out) > 500
    # Boilerplate is the same in many files.
    assert sum(text in trained for text in held_out) < 0.02 * len(held_out)


def test_words_are_one_token_each() -> None:
    tokenizer: Any = find_model().tokenizer
    assert len(set(WORDS)) == len(WORDS)
    for word in WORDS:
        assert len(tokenizer.encode(f"{word}={word}\n", add_special_tokens=False)) == 4
        quoted = tokenizer.encode(json.dumps(f"\n{word}"), add_special_tokens=False)
        assert len(quoted) == 4


@pytest.mark.parametrize("length", [256, 1024, 4096])
def test_dialogues_are_about_as_long_as_asked(lessons: Lessons, length: int) -> None:
    lengths = [len(lessons.lesson(str(i), length).ids) for i in range(8)]
    assert 0.75 * length < sum(lengths) / 8 < 1.4 * length


def test_answers_are_found_among_the_ids(lessons: Lessons) -> None:
    lesson = lessons.lesson("1", 1500)
    tasks = writer.dialogue("1", 1500)
    tokenizer: Any = find_model().tokenizer
    assert lesson.kinds == tuple(task.kind for task in tasks)
    for place, task in zip(lesson.answers, tasks, strict=True):
        text = tokenizer.decode(lesson.ids[place])
        thought, block = task.answer
        assert text.startswith(f"<think>\n{thought['thinking']}\n</think>\n\n")
        assert text.endswith("<|im_end|>")
        assert block.get("text", "<tool_call>") in text
