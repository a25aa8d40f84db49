"""Chat completions: requests as a plain proxy translates them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from mlxlab.errors import RequestError
from mlxlab.rendering.chat_template import template_input
from mlxlab.rendering.conversation import read_conversation
from mlxlab.rendering.messages import (
    MessagesRequest,
    OtherBlock,
    ToolResultBlock,
    ToolUseBlock,
    parse_request,
)
from mlxlab.replay.endpoints.dialect import Dialect, Json, Usage, read_count

__all__ = ["ChatCompletions", "read_usage"]

#: Settings that both protocols have under one name.
_SAME = ("temperature",)
_SHOWN = ("content", "reasoning", "reasoning_content", "tool_calls")


class ChatCompletions(Dialect):
    """Chat completions.

    Every block is translated literally and stays at its place, also the billing header
    and system messages between other messages.
    """

    path = "/v1/chat/completions"

    def request(
        self, body: Mapping[str, Json], model: str, max_tokens: int = 1
    ) -> dict[str, Json]:
        request = parse_request(body)
        _refuse_others(request)
        messages, tools = template_input(read_conversation(request))
        return {
            **({"model": model} if model else {}),
            "messages": list(_with_ids(messages, request)),
            **({"tools": tools} if tools else {}),
            **{name: body[name] for name in _SAME if name in body},
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def has_text(self, event: Mapping[str, Json]) -> bool:
        return any(
            any(map((choice.get("delta") or {}).get, _SHOWN))
            for choice in event.get("choices") or ()
        )

    def is_end(self, event: Mapping[str, Json]) -> bool:
        return any(c.get("finish_reason") for c in event.get("choices") or ())

    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        return read_usage(event.get("usage") or {})

    def generated(self, event: Mapping[str, Json]) -> int | None:
        return read_count((event.get("usage") or {}).get("completion_tokens"))


def read_usage(usage: Mapping[str, Json]) -> Usage | None:
    """Return the prompt in the usage of a completion."""
    details = usage.get("prompt_tokens_details") or {}
    prompt = read_count(usage.get("prompt_tokens"))
    reused = read_count(details.get("cached_tokens"))
    if not prompt:
        return None
    return Usage(prompt, None if reused is None else min(reused, prompt))


def _refuse_others(request: MessagesRequest) -> None:
    """Refuse content that has no text, such as an image.

    Raises:
        RequestError: the message names its place.
    """
    for k, message in enumerate(request.messages):
        for block in message.blocks:
            inner = block.content if isinstance(block, ToolResultBlock) else ()
            for own in (block, *(() if isinstance(inner, str) else inner)):
                if isinstance(own, OtherBlock):
                    raise RequestError(
                        f"messages.{k}: a block of type {own.type}; only text, "
                        "thinking and tools are sent as chat completions"
                    )


def _with_ids(
    messages: list[dict[str, Json]], request: MessagesRequest
) -> Iterator[dict[str, Json]]:
    """Yield messages whose calls and results carry the ids that templates leave out.

    Arguments become JSON text; templates take an object instead.
    """
    blocks = [(m.role, block) for m in request.messages for block in m.blocks]
    calls = (
        b.id for r, b in blocks if r == "assistant" and isinstance(b, ToolUseBlock)
    )
    results = (
        b.tool_use_id
        for r, b in blocks
        if r == "user" and isinstance(b, ToolResultBlock)
    )
    for message in messages:
        if message["role"] == "tool":
            yield message | {"tool_call_id": next(results)}
        elif "tool_calls" in message:
            own = [_call(call, next(calls)) for call in message["tool_calls"]]
            yield message | {"tool_calls": own}
        else:
            yield message


def _call(call: dict[str, Json], id: str) -> dict[str, Json]:
    function = call["function"]
    arguments = json.dumps(function["arguments"])
    return {**call, "id": id, "function": {**function, "arguments": arguments}}
