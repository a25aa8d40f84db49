"""The wire schema takes what clients send and names what it cannot take."""

from typing import Any

import pytest

from mlxlab.errors import RequestError
from mlxlab.rendering.messages import (
    OtherBlock,
    ToolUseBlock,
    parse_answer,
    parse_request,
)
from tests.support import wire


def test_reads_an_agents_request() -> None:
    request = parse_request(wire.session(3)[-1][0])
    assert request.thinks
    assert isinstance(request.messages[2].blocks[-1], ToolUseBlock)
    assert [m.role for m in request.messages[:3]] == ["user", "system", "assistant"]


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}])
def test_thinking_is_off_unless_asked_for(thinking: object) -> None:
    assert not parse_request({**wire.first_body(), "thinking": thinking}).thinks


def test_unknown_blocks_and_keys_are_kept() -> None:
    block = {"type": "image", "source": {"data": "AAAA"}}
    body = {**wire.first_body(), "messages": [{"role": "user", "content": [block]}]}
    found = parse_request({**body, "new_key": 1}).messages[0].blocks[0]
    assert isinstance(found, OtherBlock)
    assert found.model_dump() == block


def content(value: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": value}]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "body: Input should be a valid dictionary"),
        ([], "body: Input should be a valid dictionary"),
        ({"model": "m"}, "messages: Field required"),
        ({"model": "m", "messages": []}, "messages is empty; give at least one"),
        ({"model": "m", "messages": [{"role": "x"}]}, "messages.0.role: Input should"),
        (content([{"type": "text"}]), "messages.0.content.0.text.text: Field required"),
        (content(5), "messages.0.content: Input should be a valid"),
    ],
)
def test_says_what_is_wrong_and_where(body: object, says: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_request(body, "trace.jsonl: request 7")
    assert str(error.value).startswith("trace.jsonl: request 7: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_answer_needs_content() -> None:
    with pytest.raises(RequestError, match="content"):
        parse_answer({"type": "error"})
