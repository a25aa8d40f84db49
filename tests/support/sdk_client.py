"""The official SDK as the session checks use it, for any version.

Only values that a user of the SDK sees are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anthropic

__all__ = [
    "ADAPTIVE",
    "CAPITALS",
    "DIGITS",
    "REASONED",
    "SURE",
    "THINKING",
    "TIMEOUT_S",
    "TOOLS",
    "WEATHER",
    "Client",
    "Endpoint",
    "Servers",
    "body_of",
    "check_extends",
    "check_order",
    "comparable",
    "kinds",
    "refused",
    "reply",
    "total",
]

TIMEOUT_S = 60.0

CAPITALS = {"role": "user", "content": "Name two capitals."}
WEATHER = {"role": "user", "content": "What is the weather in Oslo?"}
DIGITS = {"role": "user", "content": "What is the sum of the digits of 2026?"}
SURE = {"role": "user", "content": "Are you sure?"}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "array"}},
            "required": ["city"],
        },
    },
    {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
]
THINKING = {"type": "enabled", "budget_tokens": 1024}
REASONED: dict[str, Any] = {"thinking": THINKING, "max_tokens": 2000}
ADAPTIVE = {"type": "adaptive"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server."""

    url: str
    token: str


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers that the checks talk to.

    Attributes:
        scripted: answers from sdk_script.json and keeps the last sequence.
        sampled: answers with the model's greedy text; its alias ``brief`` thinks at
            most
            16 tokens.
        narrow: as ``sampled``, but without aliases and without a queue.
    """

    scripted: Endpoint
    sampled: Endpoint
    narrow: Endpoint


class Client:
    """The SDK's client, with untyped arguments and no retries."""

    def __init__(self, endpoint: Endpoint, prefix: str = "", **options: Any) -> None:
        given: dict[str, Any] = {"api_key": endpoint.token} | options
        self.sdk = anthropic.Anthropic(
            base_url=endpoint.url + prefix, max_retries=0, timeout=TIMEOUT_S, **given
        )

    def create(self, *messages: Any, **options: Any) -> Any:
        return self.sdk.messages.create(**body_of(messages, options))

    def events(self, *messages: Any, **options: Any) -> list[Any]:
        with self.create(*messages, stream=True, **options) as events:
            return list(events)

    def opening(self, *messages: Any, **options: Any) -> Any:
        """Return the message as it begins; cancel the rest."""
        with self.create(*messages, stream=True, **options) as events:
            return next(iter(events)).message

    def streamed(self, *messages: Any, **options: Any) -> Any:
        with self.sdk.messages.stream(**body_of(messages, options)) as stream:
            return stream.get_final_message()

    def count(self, *messages: Any, **options: Any) -> int:
        body = body_of(messages, options)
        del body["max_tokens"]
        return int(self.sdk.messages.count_tokens(**body).input_tokens)


def body_of(messages: Iterable[Any], options: dict[str, Any]) -> dict[str, Any]:
    body = {"model": "default", "max_tokens": 200, "messages": list(messages)}
    return body | options


def total(message: Any) -> int:
    """Return the prompt tokens, which the usage reports in three parts."""
    usage = message.usage
    cached = usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return int(cached + usage.input_tokens)


def kinds(message: Any) -> list[str]:
    return [block.type for block in message.content]


def comparable(message: Any) -> dict[str, Any]:
    """Return a message without its random fields."""
    dumped: dict[str, Any] = message.model_dump(
        exclude={"id", "usage"}, exclude_none=True
    )
    for block in dumped["content"]:
        block.pop("id", None)
    return dumped | {"output_tokens": message.usage.output_tokens}


def reply(message: Any) -> dict[str, Any]:
    """Return an answer as it goes into the next request."""
    blocks = [block.model_dump(exclude_none=True) for block in message.content]
    return {"role": "assistant", "content": blocks}


def check_order(events: list[Any]) -> None:
    """Check that one block is open at a time, indexes rise, and ends match."""
    events = [event for event in events if event.type != "ping"]
    names = [event.type for event in events]
    assert names[0] == "message_start", names
    assert names[-2:] == ["message_delta", "message_stop"], names
    opened = closed = 0
    for event in events[1:-2]:
        match event.type:
            case "content_block_start":
                assert event.index == opened == closed, names
                opened += 1
            case "content_block_delta":
                assert event.index == opened - 1 == closed, names
            case "content_block_stop":
                assert event.index == opened - 1 == closed, names
                closed += 1
            case name:
                raise AssertionError(name)
    assert opened == closed, names


def check_extends(before: Any, after: Any) -> None:
    """Check that all of the turn before is restored but its last token, never fed."""
    kept = total(before) + before.usage.output_tokens - 1
    assert after.usage.cache_read_input_tokens == kept, (before.usage, after.usage)


@contextmanager
def refused(
    kind: type[anthropic.APIStatusError], says: str
) -> Iterator[list[anthropic.APIStatusError]]:
    """Expect an error of exactly this class, whose type and message match ``says``.

    Yields:
        A list that gets the error.
    """
    found: list[anthropic.APIStatusError] = []
    try:
        yield found
    except anthropic.APIStatusError as error:
        found.append(error)
    assert found, f"{kind.__name__} expected"
    assert type(found[0]) is kind, repr(found[0])
    body: Any = found[0].body
    assert body["type"] == "error", body
    line = f"{body['error']['type']}: {body['error']['message']}"
    assert re.search(says, line), line
    assert body["request_id"] == found[0].response.headers["request-id"], body
