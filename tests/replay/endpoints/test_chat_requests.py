"""A recorded chat completion is the Messages request that it was translated from."""

from __future__ import annotations

from typing import Any

import pytest

from mlxlab.errors import RequestError
from mlxlab.models.folder import find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.endpoints.chat_completions import ChatCompletions
from mlxlab.replay.endpoints.chat_requests import as_messages
from mlxlab.traces import Exchange, Response
from tests.support import wire

BODIES = [body for body, _ in wire.session(4)]


def chat(body: Any, answer: Any = None) -> Exchange:
    response = Response(1.0, 200, 0.1, answer) if answer else None
    path = "/v1/chat/completions?x=1"
    return Exchange(0, 0.0, "POST", path, {}, body, response)


@pytest.mark.parametrize("turn", range(4))
def test_a_translated_request_renders_as_the_original_does(turn: int) -> None:
    body = {**BODIES[turn], "thinking": {"type": "disabled"}}
    body["tools"] = [tool for tool in body["tools"] if "defer_loading" not in tool]
    back = as_messages(chat(ChatCompletions().request(body, "m")))
    assert back.is_inference
    renderer = Renderer(find_model(), ())
    own, again = renderer.render(body), renderer.render(back.body)
    assert own.tokens.tolist() == again.tokens.tolist()


def test_an_answer_keeps_its_calls_and_what_it_states() -> None:
    function = {"name": "Bash", "arguments": '{"command": "ls"}'}
    answer = {
        "choices": [
            {
                "message": {
                    "content": "Look.",
                    "reasoning_content": "Hm.",
                    "tool_calls": [{"id": "c1", "function": function}],
                }
            }
        ],
        "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}},
    }
    request = ChatCompletions().request(BODIES[0], "m")
    found = as_messages(chat(request, answer)).response
    assert found is not None
    assert found.message is not None
    assert found.message["usage"] == {"input_tokens": 5, "cache_read_input_tokens": 4}
    thinking, text, call = found.message["content"]
    assert (thinking["thinking"], text["text"]) == ("Hm.", "Look.")
    assert call == {
        "type": "tool_use",
        "id": "c1",
        "name": "Bash",
        "input": {"command": "ls"},
    }


def test_other_requests_stay_and_broken_ones_are_one_line() -> None:
    exchange = Exchange(0, 0.0, "POST", "/v1/messages", {}, BODIES[0])
    assert as_messages(exchange) is exchange
    for body in ({}, {"messages": [3]}, {"messages": [{"role": "user"}], "tools": [1]}):
        with pytest.raises(RequestError, match="request 0: not a chat completion"):
            as_messages(chat(body))
