"""The two protocols in which the compared servers are asked for a first token.

Both start from a recorded Messages request, so that every server gets the same
conversation. Knows nothing of processes and clocks.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from mlxlab.rendering.chat_template import template_input
from mlxlab.rendering.conversation import read_conversation
from mlxlab.rendering.messages import parse_request

__all__ = ["ChatCompletions", "Dialect", "Messages", "Usage"]

Json: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server says of a prompt.

    Attributes:
        prompt: its tokens.
        reused: those of them that were not computed again.
    """

    prompt: int
    reused: int


class Dialect(ABC):
    """How a request is put, and what of the answer's events matters.

    Attributes:
        path: where it is sent to.
    """

    path: ClassVar[str]

    @abstractmethod
    def request(self, body: Mapping[str, Json], model: str) -> dict[str, Json]:
        """A Messages request in this dialect, for one streamed token of ``model``.

        Raises:
            RequestError: ``body`` is no Messages request.
        """

    @abstractmethod
    def has_token(self, event: Mapping[str, Json]) -> bool:
        """Whether the event could only be sent once a token was there.

        The end of an answer counts: its one token may have nothing to show, such as
        half a character or reasoning that the client did not ask to see.
        """

    @abstractmethod
    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        """The usage in an event; None if it has none or names no prompt tokens."""


class Messages(Dialect):
    """The Messages API: the request as it was recorded."""

    path = "/v1/messages"

    def request(self, body: Mapping[str, Json], model: str) -> dict[str, Json]:
        return {**body, "model": model, "max_tokens": 1, "stream": True}

    def has_token(self, event: Mapping[str, Json]) -> bool:
        return event.get("type") in {"content_block_delta", "message_delta"}

    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        usage = (event.get("message") or {}).get("usage") or {}
        reused = usage.get("cache_read_input_tokens") or 0
        created = usage.get("cache_creation_input_tokens") or 0
        prompt = reused + created + (usage.get("input_tokens") or 0)
        return Usage(prompt, reused) if prompt else None


class ChatCompletions(Dialect):
    """Chat completions: the request as a plain proxy translates it.

    Every block is taken literally and stays where it is: the billing header, and
    system messages between the others too.
    """

    path = "/v1/chat/completions"

    def request(self, body: Mapping[str, Json], model: str) -> dict[str, Json]:
        conversation = read_conversation(parse_request(body))
        messages, tools = template_input(conversation)
        return {
            "model": model,
            "messages": [_with_arguments_as_text(message) for message in messages],
            **({"tools": tools} if tools else {}),
            "max_tokens": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def has_token(self, event: Mapping[str, Json]) -> bool:
        shown = ("content", "reasoning", "reasoning_content", "tool_calls")
        return any(
            choice.get("finish_reason") or any(map(choice["delta"].get, shown))
            for choice in event.get("choices") or ()
        )

    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        usage = event.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        prompt = usage.get("prompt_tokens")
        return Usage(prompt, details.get("cached_tokens") or 0) if prompt else None


def _with_arguments_as_text(message: dict[str, Json]) -> dict[str, Json]:
    """On the wire the arguments of a call are JSON text, in templates an object."""
    calls = [
        {**call, "function": {**function, "arguments": json.dumps(arguments)}}
        for call in message.get("tool_calls", ())
        for function in [call["function"]]
        for arguments in [function["arguments"]]
    ]
    return message | {"tool_calls": calls} if calls else message
