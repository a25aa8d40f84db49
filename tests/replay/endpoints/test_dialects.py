from __future__ import annotations

import json
from typing import Any

import pytest

from mlxlab.errors import RequestError
from mlxlab.models.folder import find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.endpoints.chat_completions import ChatCompletions
from mlxlab.replay.endpoints.dialect import Dialect, Usage
from mlxlab.replay.endpoints.messages import Messages
from mlxlab.traces import load_trace

BODY: dict[str, Any] = {
    "model": "claude-any",
    "max_tokens": 32_000,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1;"},
        {"type": "text", "text": "Be brief."},
    ],
    "tools": [{"name": "Bash", "description": "Run.", "input_schema": {}}],
    "messages": [
        {"role": "user", "content": "List it."},
        {"role": "system", "content": "Today is Monday."},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "a", "name": "Bash", "input": {"cmd": "ls"}}
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "a", "content": "f"}],
        },
    ],
}


def test_messages_go_out_as_recorded() -> None:
    sent = Messages().request(BODY, "m")
    assert sent == BODY | {"model": "m", "max_tokens": 1, "stream": True}
    assert BODY["max_tokens"] == 32_000


def test_a_proxy_moves_and_drops_nothing() -> None:
    sent = ChatCompletions().request(BODY, "m")
    roles = [message["role"] for message in sent["messages"]]
    assert roles == ["system", "user", "system", "assistant", "tool"]
    assert sent["messages"][0]["content"] == (
        "x-anthropic-billing-header: cc_version=1;Be brief."
    )
    (call,) = sent["messages"][3]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"cmd": "ls"}
    assert sent["tools"][0]["function"]["name"] == "Bash"
    assert sent["max_tokens"] == 1
    assert sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("dialect", [Messages(), ChatCompletions()])
def test_sampling_and_length_reach_the_server(dialect: Dialect) -> None:
    sent = dialect.request(BODY | {"temperature": 0}, "m", 48)
    assert sent["temperature"] == 0
    assert sent["max_tokens"] == 48


def test_tools_are_left_out_if_there_are_none() -> None:
    sent = ChatCompletions().request(BODY | {"tools": []}, "m")
    assert "tools" not in sent


def test_a_proxy_gives_a_server_what_we_render_but_for_the_rules() -> None:
    """The texts are the same, so that servers are not compared on other prompts."""
    folder = find_model()
    body = load_trace("sessions").inference[3].body
    assert body is not None
    sent = ChatCompletions().request(body, "m")
    for message in sent["messages"]:
        for call in message.get("tool_calls", ()):
            function = call["function"]
            function["arguments"] = json.loads(function["arguments"])
    text = folder.tokenizer.apply_chat_template(
        sent["messages"],
        tools=sent["tools"],
        tokenize=False,
        add_generation_prompt=True,
    )
    literal = len(folder.tokenizer(text, add_special_tokens=False)["input_ids"])
    ours = len(Renderer(folder).render(body))
    assert ours < literal < 1.02 * ours


@pytest.mark.parametrize(
    ("dialect", "event", "expected"),
    [
        (Messages(), {"type": "ping"}, False),
        (Messages(), {"type": "message_start", "message": {}}, False),
        (Messages(), {"type": "content_block_start", "index": 0}, False),
        (Messages(), {"type": "content_block_delta", "index": 0}, True),
        (Messages(), {"type": "message_delta", "delta": {}}, True),
        (ChatCompletions(), {"choices": [{"delta": {"role": "assistant"}}]}, False),
        (ChatCompletions(), {"choices": [{"delta": {"content": ""}}]}, False),
        (ChatCompletions(), {"choices": [{"delta": {"content": "a"}}]}, True),
        (ChatCompletions(), {"choices": [{"delta": {"reasoning": "a"}}]}, True),
        (
            ChatCompletions(),
            {"choices": [{"delta": {}, "finish_reason": "length"}]},
            True,
        ),
        (ChatCompletions(), {"choices": [], "usage": {"prompt_tokens": 3}}, False),
    ],
)
def test_what_proves_a_token(
    dialect: Dialect, event: dict[str, Any], expected: bool
) -> None:
    assert (dialect.has_text(event) or dialect.is_end(event)) is expected


def test_usage_of_messages_is_disjoint() -> None:
    usage = {
        "input_tokens": 1,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 300,
    }
    event = {"type": "message_start", "message": {"usage": usage}}
    assert Messages().usage(event) == Usage(prompt=321, reused=300)


def test_a_server_that_reports_no_prompt_is_not_believed() -> None:
    event = {"type": "message_start", "message": {"usage": {"input_tokens": 0}}}
    assert Messages().usage(event) is None


def test_usage_of_chat_completions() -> None:
    usage = {"prompt_tokens": 321, "prompt_tokens_details": {"cached_tokens": 300}}
    dialect = ChatCompletions()
    assert dialect.usage({"choices": [], "usage": usage}) == Usage(321, 300)
    assert dialect.usage({"usage": {"prompt_tokens": 321}}) == Usage(321, None)
    assert dialect.usage({"choices": []}) is None


def test_generated_tokens_come_with_the_end() -> None:
    start = {"type": "message_start", "message": {"usage": {"output_tokens": 1}}}
    assert Messages().generated(start) is None
    end = {"type": "message_delta", "usage": {"output_tokens": 48}}
    assert Messages().generated(end) == 48
    usage = {"prompt_tokens": 3, "completion_tokens": 48}
    assert ChatCompletions().generated({"choices": [], "usage": usage}) == 48
    assert ChatCompletions().generated({"choices": []}) is None


def test_an_end_is_no_text() -> None:
    assert not Messages().has_text({"type": "message_delta"})
    ended = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    assert not ChatCompletions().has_text(ended)


def test_a_later_event_does_not_take_back_what_an_earlier_one_stated() -> None:
    assert Usage(100, 80).updated(Usage(20, None)) == Usage(100, 80)
    assert Usage(10, None).updated(Usage(100, 0)) == Usage(100, 0)


def test_calls_and_results_carry_their_ids() -> None:
    """Strict servers refuse a result that names no call."""
    messages = ChatCompletions().request(BODY, "m")["messages"]
    assert messages[3]["tool_calls"][0]["id"] == "a"
    assert messages[4]["tool_call_id"] == "a"


def test_an_image_has_no_place_in_chat_completions() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "aa"}}
    content = [{"type": "tool_result", "tool_use_id": "a", "content": [image]}]
    body = {**BODY, "messages": [{"role": "user", "content": content}]}
    with pytest.raises(RequestError, match=r"^messages.0: a block of type image; "):
        ChatCompletions().request(body, "m")


def test_a_budget_of_thinking_fits_a_short_answer() -> None:
    body = BODY | {"thinking": {"type": "enabled", "budget_tokens": 2048}}
    assert Messages().request(body, "m", 16)["thinking"] == {"type": "adaptive"}
    assert Messages().request(body, "m", 4096)["thinking"] == body["thinking"]


def test_headers_that_explain_the_body_are_sent() -> None:
    recorded = {"anthropic-beta": "b", "user-agent": "u", "x-claude-code-agent-id": "1"}
    assert Messages().headers(recorded) == {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "b",
        "x-claude-code-agent-id": "1",
    }
    assert ChatCompletions().headers(recorded) == {}
