"""The checks of a program that uses the official SDK, in the version on the path.

Run as a module: reads the servers from standard input and writes the outcome of each
check to standard output, both as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

import anthropic

from tests.support.sdk_client import (
    ADAPTIVE,
    CAPITALS,
    DIGITS,
    REASONED,
    SURE,
    THINKING,
    TIMEOUT_S,
    TOOLS,
    WEATHER,
    Client,
    Endpoint,
    Servers,
    body_of,
    check_extends,
    check_order,
    comparable,
    kinds,
    refused,
    reply,
    total,
)

Check: TypeAlias = Callable[[Servers], None]

CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


@check
def a_stream_adds_up_to_the_whole_answer(servers: Servers) -> None:
    client = Client(servers.scripted)
    asked: list[tuple[Any, dict[str, Any]]] = [
        (CAPITALS, {}),
        (WEATHER, {"tools": TOOLS}),
        (DIGITS, REASONED),
    ]
    for message, options in asked:
        whole = comparable(client.create(message, **options))
        assert comparable(client.streamed(message, **options)) == whole
        check_order(client.events(message, **options))


@check
def text_is_what_was_said(servers: Servers) -> None:
    message = Client(servers.scripted).create(CAPITALS)
    assert kinds(message) == ["text"], message
    text = "The capitals are Paris and — further south — Rome."
    assert message.content[0].text == text, message
    assert message.stop_reason == "end_turn", message
    assert message.model == "default", message


@check
def tools_are_called_and_their_results_read(servers: Servers) -> None:
    client = Client(servers.scripted)
    message = client.streamed(WEATHER, tools=TOOLS)
    assert kinds(message) == ["text", "tool_use", "tool_use"], message
    assert message.stop_reason == "tool_use", message
    _, oslo, bergen = message.content
    assert (oslo.name, bergen.name) == ("weather", "weather")
    assert oslo.id != bergen.id
    assert oslo.input == {"city": "Oslo", "days": [1, 2], "units": {"wind": "m/s"}}
    assert bergen.input == {"city": "Bergen"}
    blocks = [{"type": "text", "text": "more rain"}]
    results = [
        {"type": "tool_result", "tool_use_id": oslo.id, "content": "rain"},
        {"type": "tool_result", "tool_use_id": bergen.id, "content": blocks},
    ]
    turn = {"role": "user", "content": results}
    answer = client.create(WEATHER, reply(message), turn, tools=TOOLS)
    assert answer.content[0].text == "Rain in both.", answer
    check_extends(message, answer)


@check
def input_arrives_while_it_is_generated(servers: Servers) -> None:
    events = Client(servers.scripted).events(WEATHER, tools=TOOLS)
    deltas = [e.delta for e in events if e.type == "content_block_delta"]
    pieces = [d.partial_json for d in deltas if d.type == "input_json_delta"]
    assert len(pieces) > 6, pieces
    joined = "".join(pieces)
    # Two calls, one after the other.
    first, end = json.JSONDecoder().raw_decode(joined)
    assert first["units"] == {"wind": "m/s"}, joined
    assert json.loads(joined[end:]) == {"city": "Bergen"}, joined


@check
def one_call_at_a_time_on_request(servers: Servers) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message = Client(servers.scripted).create(WEATHER, tools=TOOLS, tool_choice=choice)
    assert kinds(message) == ["text", "tool_use"], message
    assert message.stop_reason == "tool_use", message


@check
def tool_choice_is_honoured(servers: Servers) -> None:
    def answer(**choice: str) -> Any:
        options: dict[str, Any] = {"tools": TOOLS, "max_tokens": 20}
        return Client(servers.sampled).create(WEATHER, tool_choice=choice, **options)

    clock = answer(type="tool", name="clock").content[0]
    assert (clock.type, clock.name) == ("tool_use", "clock"), clock
    # The random model seldom completes the call; then its text is shown.
    first = answer(type="any").content[0]
    assert first.type == "tool_use" or first.text.startswith("<tool_call>"), first
    none = answer(type="none")
    assert "tool_use" not in kinds(none), none
    with refused(anthropic.BadRequestError, "tool_choice.name: no tool 'x'"):
        answer(type="tool", name="x")


@check
def thinking_comes_back_token_for_token(servers: Servers) -> None:
    client = Client(servers.scripted)
    for display in ("summarized", "omitted"):
        options = REASONED | {"thinking": THINKING | {"display": display}}
        before = client.streamed(DIGITS, **options)
        assert kinds(before) == ["thinking", "text"], before
        thought, text = before.content
        assert thought.signature, before
        assert bool(thought.thinking) == (display == "summarized"), before
        assert text.text == "It is ten.", before
        after = client.create(DIGITS, reply(before), SURE, **options)
        assert after.content[-1].text == "Yes, quite sure.", after
        check_extends(before, after)


@check
def a_signature_ends_its_block(servers: Servers) -> None:
    events = Client(servers.scripted).events(DIGITS, **REASONED)
    deltas = [e.delta.type for e in events if e.type == "content_block_delta"]
    signed = deltas.index("signature_delta")
    assert set(deltas[:signed]) == {"thinking_delta"}, deltas
    assert set(deltas[signed + 1 :]) == {"text_delta"}, deltas


@check
def text_follows_when_a_budget_is_spent(servers: Servers) -> None:
    options = REASONED | {"model": "brief", "stream": True}
    seen: list[str] = []
    with Client(servers.sampled).create(DIGITS, **options) as events:
        for event in events:
            if event.type == "content_block_delta":
                seen.append(event.delta.type)
            if "text_delta" in seen:
                break
    assert seen[-2:] == ["signature_delta", "text_delta"], seen
    assert len(seen) <= 18, seen


@check
def faults_of_a_request_are_told(servers: Servers) -> None:
    client = Client(servers.sampled)
    image = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}
    search = {"type": "web_search_20250305", "name": "web_search"}
    short = {"type": "enabled", "budget_tokens": 10}
    faults: list[tuple[str, Any, dict[str, Any]]] = [
        ("max_tokens: ", CAPITALS, {"max_tokens": -1}),
        ("thinking.budget_tokens: 10 ", CAPITALS, {"thinking": short}),
        ("messages.0.role: ", {"role": "tool", "content": "x"}, {}),
        ("tools.0.type: 'web_search_20250305'", CAPITALS, {"tools": [search]}),
        ("messages.0.content.0: .*'image'", {"role": "user", "content": [image]}, {}),
    ]
    for says, message, options in faults:
        with refused(anthropic.BadRequestError, f"^invalid_request_error: {says}"):
            client.create(message, **options)
    with refused(anthropic.NotFoundError, "^not_found_error: .*default, brief"):
        client.create(CAPITALS, model="gpt-oss")
    with refused(anthropic.AuthenticationError, "^authentication_error: "):
        Client(servers.sampled, api_key="not the token").create(CAPITALS)


@check
def too_much_is_refused(servers: Servers) -> None:
    client = Client(servers.sampled)
    with refused(anthropic.RequestTooLargeError, "^request_too_large: "):
        client.create({"role": "user", "content": "x" * 33 * 2**20})
    long = {"role": "user", "content": "one two three four " * 35_000}
    says = r": prompt is too long: 1\d{5} tokens > 131072 maximum$"
    with refused(anthropic.BadRequestError, says):
        client.streamed(long)


@check
def a_full_queue_is_told(servers: Servers) -> None:
    client = Client(servers.narrow)
    with client.create(CAPITALS, stream=True, max_tokens=100_000) as running:
        assert next(iter(running)).type == "message_start"
        overloaded = anthropic.OverloadedError
        with refused(overloaded, "^overloaded_error: ") as found:
            client.create(CAPITALS)
    assert found[0].status_code == 529, found
    assert int(found[0].response.headers["retry-after"]) > 0, found


@check
def counts_are_those_of_the_answer(servers: Servers) -> None:
    client = Client(servers.sampled)
    variants: list[dict[str, Any]] = [
        {},
        {"system": "Be brief."},
        {"tools": TOOLS, "tool_choice": {"type": "any"}},
        {"thinking": ADAPTIVE},
    ]
    for options in variants:
        count = client.count(WEATHER, **options)
        opening = client.opening(WEATHER, **options)
        assert total(opening) == count, (options, opening.usage)


@check
def models_are_listed(servers: Servers) -> None:
    models = Client(servers.sampled).sdk.models
    assert [model.id for model in models.list(limit=1000)] == ["default", "brief"]
    assert models.retrieve("brief").id == "brief"
    assert models.retrieve("claude-opus-4-1").type == "model"
    with refused(anthropic.NotFoundError, "^not_found_error: "):
        models.retrieve("gpt-oss")


@check
def stop_sequences_end_an_answer(servers: Servers) -> None:
    client = Client(servers.scripted)
    for ask in (client.create, client.streamed):
        message = ask(CAPITALS, stop_sequences=["Berlin", " and —"])
        assert message.content[0].text == "The capitals are Paris", message
        assert message.stop_reason == "stop_sequence", message
        assert message.stop_sequence == " and —", message


@check
def no_tokens_fill_the_cache(servers: Servers) -> None:
    client = Client(servers.scripted)
    asked = {"role": "user", "content": "A question that nobody asked before."}
    warmed = client.create(asked, max_tokens=0)
    assert warmed.content == [], warmed
    assert warmed.stop_reason == "max_tokens", warmed
    assert warmed.usage.output_tokens == 0, warmed
    answer = client.create(asked)
    # The last token of a prompt is always computed.
    assert answer.usage.cache_read_input_tokens == total(warmed) - 1, answer


@check
def max_tokens_cuts_an_answer(servers: Servers) -> None:
    message = Client(servers.scripted).create(CAPITALS, max_tokens=3)
    assert message.stop_reason == "max_tokens", message
    assert message.usage.output_tokens == 3, message
    assert message.content[0].text.startswith("The capital"), message


@check
def an_answer_goes_on_where_it_was_begun(servers: Servers) -> None:
    client = Client(servers.sampled)
    events = client.events(CAPITALS, max_tokens=8)
    deltas = [e.delta for e in events if e.type == "content_block_delta"]
    pieces = [delta.text for delta in deltas]
    whole = "".join(pieces)

    def goes_on(cut: int) -> bool:
        text = "".join(pieces[:cut])
        opening = {"role": "assistant", "content": text}
        message = client.create(CAPITALS, opening, max_tokens=8)
        return bool((text + message.content[0].text).startswith(whole))

    # At some cuts the text becomes other tokens, and the answer continues differently.
    assert any(goes_on(cut) for cut in range(1, len(pieces))), pieces


@check
def json_follows_its_schema(servers: Servers) -> None:
    client = Client(servers.sampled)

    def answer(schema: dict[str, Any]) -> Any:
        form = {"type": "json_schema", "schema": schema}
        return client.create(CAPITALS, output_config={"format": form})

    properties = {"sure": {"type": "boolean"}, "mark": {"enum": ["good", "poor"]}}
    closed = {"required": ["sure", "mark"], "additionalProperties": False}
    message = answer({"type": "object", "properties": properties, **closed})
    value = json.loads(message.content[0].text)
    assert value.keys() == properties.keys(), value
    assert isinstance(value["sure"], bool), value
    assert value["mark"] in {"good", "poor"}, value
    assert message.stop_reason == "end_turn", message
    with refused(anthropic.BadRequestError, "output_config.format.schema: "):
        answer({"type": "no such type"})


@check
def system_text_goes_anywhere(servers: Servers) -> None:
    client = Client(servers.sampled)
    brief = {"type": "text", "text": "Be brief."}
    cached = [brief | {"cache_control": {"type": "ephemeral"}}]
    count = client.count(CAPITALS, system=cached)
    assert count == client.count(CAPITALS, system="Be brief.")
    inline = {"role": "system", "content": "It is Sunday."}
    longer = client.count(CAPITALS, inline, system=cached)
    assert longer > count
    assert total(client.opening(CAPITALS, inline, system=cached)) == longer


@check
def open_lists_stay_open(servers: Servers) -> None:
    unknown = {"of_tomorrow": {"deep": [1]}, "cache_control": {"type": "ephemeral"}}
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 3}
    message = Client(servers.sampled).create(
        CAPITALS | {"of_tomorrow": True},
        max_tokens=2,
        metadata={"user_id": "somebody"},
        service_tier="auto",
        extra_headers={"anthropic-beta": "of-tomorrow-2030-01-01"},
        extra_query={"beta": "true"},
        # In the extra body, because 2.x has no arguments for sampling.
        extra_body=sampling | unknown,
    )
    assert message.usage.output_tokens <= 2, message


@check
def both_credentials_and_both_paths_are_taken(servers: Servers) -> None:
    token = servers.sampled.token
    ways: list[dict[str, Any]] = [
        {"api_key": token},
        {"api_key": None, "auth_token": token},
        {"api_key": "nobody", "default_headers": {"x-api-key": token}},
    ]
    for prefix in ("", "/anthropic"):
        for way in ways:
            client = Client(servers.sampled, prefix, **way)
            opening = client.opening(CAPITALS)
            assert total(opening) == client.count(CAPITALS), opening
            assert len(list(client.sdk.models.list())) == 2


@check
def headers_are_those_of_the_version(servers: Servers) -> None:
    client = Client(servers.scripted)
    body = body_of([CAPITALS], {"max_tokens": 1})
    raw: Any = client.sdk.messages.with_raw_response.create(**body)
    sent, token = raw.http_request.headers, servers.scripted.token
    if int(anthropic.__version__.partition(".")[0]) < 2:
        assert sent["anthropic-version"] == "2023-06-01", sent
        assert sent["x-api-key"] == token, sent
    else:
        assert sent["anthropic-version"] == "2026-10-21", sent
        assert sent["authorization"] == f"Bearer {token}", sent
    assert raw.headers["request-id"] == raw.parse()._request_id


@check
def the_asynchronous_client_asks_side_by_side(servers: Servers) -> None:
    endpoint = servers.scripted
    replies = {"The capitals": CAPITALS, "I look it up.": WEATHER, "It is ten.": DIGITS}

    async def ask(client: Any, message: Any, stream: bool) -> Any:
        body = body_of([message], {"tools": TOOLS, "thinking": ADAPTIVE})
        if not stream:
            return await client.messages.create(**body)
        async with client.messages.stream(**body) as events:
            return await events.get_final_message()

    async def ask_all() -> list[Any]:
        async with anthropic.AsyncAnthropic(
            base_url=endpoint.url, api_key=endpoint.token, timeout=TIMEOUT_S
        ) as client:
            asked = [ask(client, m, s) for m in replies.values() for s in (True, False)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    for says, pair in zip(replies, zip(*[iter(answers)] * 2, strict=True), strict=True):
        for answer in pair:
            texts = [block.text for block in answer.content if block.type == "text"]
            assert texts[0].startswith(says), answer


def outcome(function: Check, servers: Servers) -> str:
    """Return the reason of a failure; empty for a success."""
    try:
        function(servers)
    except Exception:
        return traceback.format_exc()
    return ""


def main() -> None:
    given = json.load(sys.stdin)
    servers = Servers(**{name: Endpoint(**at) for name, at in given.items()})
    outcomes = {function.__name__: outcome(function, servers) for function in CHECKS}
    json.dump({"version": anthropic.__version__, "outcomes": outcomes}, sys.stdout)


if __name__ == "__main__":
    main()
