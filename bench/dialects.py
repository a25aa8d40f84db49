"""The two protocols that the benchmark uses to ask servers for a first token.

Both start from a recorded Messages request, so every server gets the same
conversation.
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
    """A server's report on a prompt.

    Attributes:
        prompt: its tokens.
        reused: the tokens that were not computed again.
    """

    prompt: int
    reused: int


class Dialect(ABC):
    """The form of a request, and the events of an answer that matter.

    Attributes:
        path: the path that requests are sent to.
    """

    path: ClassVar[str]

    @abstractmethod
    def request(self, body: Mapping[str, Json], model: str) -> dict[str, Json]:
        """Translate a Messages request, for one streamed token of ``model``.

        Raises:
            RequestError: ``body`` is not a Messages request.
        """

    @abstractmethod
    def has_token(self, event: Mapping[str, Json]) -> bool:
        """Return whether the event implies that a token was generated.

        The end of an answer counts too. Its one token may have no visible text, such as
        half
        a character or hidden thinking.
        """

    @abstractmethod
    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        """Return the usage in an event; None if it reports no prompt tokens."""


class Messages(Dialect):
    """The Messages API: requests as they were recorded."""

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
    """Chat completions: requests as a plain proxy translates them.

    Every block is translated literally and stays at its place, also the billing header
    and system messages between other messages.
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
    """Write a call's arguments as JSON text; templates take an object instead."""
    calls = [
        {**call, "function": {**function, "arguments": json.dumps(arguments)}}
        for call in message.get("tool_calls", ())
        for function in [call["function"]]
        for arguments in [function["arguments"]]
    ]
    return message | {"tool_calls": calls} if calls else message
