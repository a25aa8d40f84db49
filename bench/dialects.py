"""The two protocols that the benchmark uses to ask servers.

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

#: Settings that both protocols have under one name.
_SAME = ("temperature",)


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
    def request(
        self, body: Mapping[str, Json], model: str, max_tokens: int = 1
    ) -> dict[str, Json]:
        """Translate a Messages request, for streamed tokens of ``model``.

        Raises:
            RequestError: ``body`` is not a Messages request.
        """

    @abstractmethod
    def has_text(self, event: Mapping[str, Json]) -> bool:
        """Return whether the event has a piece of the answer."""

    @abstractmethod
    def is_end(self, event: Mapping[str, Json]) -> bool:
        """Return whether the event ends the answer."""

    def has_token(self, event: Mapping[str, Json]) -> bool:
        """Return whether the event implies that a token was generated.

        The end of an answer counts too. Its one token may have no visible text, such as
        half a character or hidden thinking.
        """
        return self.has_text(event) or self.is_end(event)

    @abstractmethod
    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        """Return the usage in an event; None if it reports no prompt tokens."""

    @abstractmethod
    def generated(self, event: Mapping[str, Json]) -> int | None:
        """Return the answer's tokens; None if the event does not report them."""


class Messages(Dialect):
    """The Messages API: requests as they were recorded."""

    path = "/v1/messages"

    def request(
        self, body: Mapping[str, Json], model: str, max_tokens: int = 1
    ) -> dict[str, Json]:
        return {**body, "model": model, "max_tokens": max_tokens, "stream": True}

    def has_text(self, event: Mapping[str, Json]) -> bool:
        return event.get("type") == "content_block_delta"

    def is_end(self, event: Mapping[str, Json]) -> bool:
        return event.get("type") == "message_delta"

    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        usage = (event.get("message") or {}).get("usage") or {}
        reused = usage.get("cache_read_input_tokens") or 0
        created = usage.get("cache_creation_input_tokens") or 0
        prompt = reused + created + (usage.get("input_tokens") or 0)
        return Usage(prompt, reused) if prompt else None

    def generated(self, event: Mapping[str, Json]) -> int | None:
        if not self.is_end(event):
            return None
        return (event.get("usage") or {}).get("output_tokens")


class ChatCompletions(Dialect):
    """Chat completions: requests as a plain proxy translates them.

    Every block is translated literally and stays at its place, also the billing header
    and system messages between other messages.
    """

    path = "/v1/chat/completions"

    def request(
        self, body: Mapping[str, Json], model: str, max_tokens: int = 1
    ) -> dict[str, Json]:
        conversation = read_conversation(parse_request(body))
        messages, tools = template_input(conversation)
        return {
            "model": model,
            "messages": [_with_arguments_as_text(message) for message in messages],
            **({"tools": tools} if tools else {}),
            **{name: body[name] for name in _SAME if name in body},
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def has_text(self, event: Mapping[str, Json]) -> bool:
        shown = ("content", "reasoning", "reasoning_content", "tool_calls")
        return any(
            any(map(choice["delta"].get, shown))
            for choice in event.get("choices") or ()
        )

    def is_end(self, event: Mapping[str, Json]) -> bool:
        return any(c.get("finish_reason") for c in event.get("choices") or ())

    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        usage = event.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        prompt = usage.get("prompt_tokens")
        return Usage(prompt, details.get("cached_tokens") or 0) if prompt else None

    def generated(self, event: Mapping[str, Json]) -> int | None:
        return (event.get("usage") or {}).get("completion_tokens")


def _with_arguments_as_text(message: dict[str, Json]) -> dict[str, Json]:
    """Write a call's arguments as JSON text; templates take an object instead."""
    calls = [
        {**call, "function": {**function, "arguments": json.dumps(arguments)}}
        for call in message.get("tool_calls", ())
        for function in [call["function"]]
        for arguments in [function["arguments"]]
    ]
    return message | {"tool_calls": calls} if calls else message
