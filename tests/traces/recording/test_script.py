"""A script answers by the conversation so far and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxlab.errors import ScriptError
from mlxlab.traces.recording.script import Script, read_script


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


SCRIPT = Script.model_validate(
    {
        "conversations": [
            {
                "match": "Fix (it|them)",
                "replies": [
                    [
                        text("Look."),
                        {"type": "tool_use", "name": "Bash", "input": {"c": 1}},
                    ],
                    [
                        {"type": "thinking", "thinking": "So.", "signature": "c2ln"},
                        text("2"),
                    ],
                ],
            },
            {"match": "Explain", "replies": [[text("Because.")]]},
        ],
        "otherwise": [text("Nothing.")],
    }
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


ASSISTANT = {"role": "assistant", "content": "..."}
RESULT = user([{"type": "tool_result", "tool_use_id": "t", "content": "Fix it"}])


def said(*messages: Any) -> str:
    answer = SCRIPT.answer({"model": "m", "messages": list(messages)})
    return str(answer["content"][-1].get("text", answer["content"][0].get("text")))


def test_replies_follow_in_order_and_then_end() -> None:
    assert said(user("Fix it")) == "Look."
    assert said(user([text("Please"), text("Fix them")]), ASSISTANT, RESULT) == "2"
    assert said(user("Fix it"), ASSISTANT, RESULT, ASSISTANT, RESULT) == "Nothing."


def test_the_latest_matching_message_of_the_user_decides() -> None:
    history = [user("Fix it"), ASSISTANT, RESULT, ASSISTANT]
    assert said(*history, user("Explain")) == "Because."
    assert said(*history[:2], user("Go on")) == "2"
    assert said(user("Hello")) == "Nothing."
    assert said({"role": "assistant", "content": "Fix it"}) == "Nothing."


def test_an_answer_is_a_message_with_new_ids_each_time() -> None:
    body = {"model": "m", "messages": [user("Fix it")]}
    one, other = SCRIPT.answer(body), SCRIPT.answer(body)
    ids = {one["id"], other["id"], one["content"][1]["id"], other["content"][1]["id"]}
    assert len(ids) == 4
    assert (one["model"], one["stop_reason"]) == ("m", "tool_use")
    assert one["usage"]["input_tokens"] == len(json.dumps(body).replace(" ", "")) // 4


def test_thinking_keeps_its_signature() -> None:
    answer = SCRIPT.answer({"messages": [user("Fix it"), ASSISTANT]})
    thinking = {"type": "thinking", "thinking": "So.", "signature": "c2ln"}
    assert answer["content"][0] == thinking
    assert answer["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    "messages", [None, "x", [], [None, 3, {}], [user(None)], [user([1])]]
)
def test_malformed_requests_get_the_last_answer(messages: Any) -> None:
    answer = SCRIPT.answer({"messages": messages})
    assert answer["content"] == [text("Nothing.")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "script: "),
        ('{"conversations": []}', "otherwise: Field required"),
        ('{"conversations": [], "otherwise": []}', "otherwise: "),
        (
            '{"conversations": [{"match": "(", "replies": []}], "otherwise": []}',
            r"conversations.0.match: .*not a regular expression",
        ),
        (
            '{"conversations": [], "otherwise": [{"type": "image"}]}',
            r"otherwise.0: .*'text', 'thinking', 'tool_use'",
        ),
    ],
)
def test_a_bad_script_is_named_with_its_reason(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "script.json"
    path.write_text(content)
    with pytest.raises(ScriptError, match=reason) as caught:
        read_script(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="No such file"):
        read_script(tmp_path / "none.json")
