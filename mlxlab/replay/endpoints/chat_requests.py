"""Recorded chat completions as Messages requests, so that all verbs can read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mlxlab.errors import RequestError
from mlxlab.replay.endpoints.chat_completions import ChatCompletions, read_usage
from mlxlab.replay.endpoints.dialect import Json
from mlxlab.replay.endpoints.messages import Messages
from mlxlab.traces import Exchange, Response

__all__ = ["as_messages"]

_SYSTEM = ("system", "developer")


def as_messages(exchange: Exchange) -> Exchange:
    """Return a chat completion as an exchange of the Messages API; others as they are.

    Raises:
        RequestError: it is not a request for a chat completion.
    """
    path = exchange.path.partition("?")[0]
    if not path.endswith(ChatCompletions.path) or exchange.body is None:
        return exchange
    try:
        body = _body(exchange.body)
        response = exchange.response and _response(exchange.response)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise RequestError(
            f"request {exchange.id}: not a chat completion ({error!r:.80})"
        ) from None
    return replace(exchange, path=Messages.path, body=body, response=response)


def _body(body: Mapping[str, Json]) -> dict[str, Json]:
    messages: Sequence[Mapping[str, Json]] = body["messages"]
    first = next(
        (i for i, own in enumerate(messages) if own["role"] not in _SYSTEM),
        len(messages),
    )
    tools = [tool["function"] for tool in body.get("tools") or ()]
    return {
        "model": str(body.get("model", "")),
        "system": [block for own in messages[:first] for block in _texts(own)],
        "tools": [
            {
                "name": tool["name"],
                "description": tool.get("description") or "",
                "input_schema": tool.get("parameters") or {},
            }
            for tool in tools
        ],
        "messages": list(map(_message, messages[first:])),
    }


def _message(message: Mapping[str, Json]) -> dict[str, Json]:
    role = message["role"]
    if role == "tool":
        result = {
            "type": "tool_result",
            "tool_use_id": str(message.get("tool_call_id", "")),
            "content": list(_texts(message)),
        }
        return {"role": "user", "content": [result]}
    if role == "assistant":
        return {"role": role, "content": list(_answer(message))}
    own = "system" if role in _SYSTEM else "user"
    return {"role": own, "content": list(_texts(message))}


def _texts(message: Mapping[str, Json]) -> Iterator[dict[str, Json]]:
    """Yield the content as text blocks; other parts keep their type alone."""
    content = message.get("content") or ()
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        return
    for part in content:
        is_text = part["type"] == "text"
        yield {"type": "text", "text": part["text"]} if is_text else {"type": "image"}


def _answer(message: Mapping[str, Json]) -> Iterator[dict[str, Json]]:
    thinking = message.get("reasoning_content") or message.get("reasoning")
    if thinking:
        yield {"type": "thinking", "thinking": thinking, "signature": ""}
    yield from _texts(message)
    for call in message.get("tool_calls") or ():
        function = call["function"]
        yield {
            "type": "tool_use",
            "id": str(call.get("id", "")),
            "name": function["name"],
            "input": json.loads(function["arguments"] or "{}"),
        }


def _response(response: Response) -> Response:
    message = response.message or {}
    if response.status != 200 or not message.get("choices"):
        return response
    usage = read_usage(message.get("usage") or {})
    own: dict[str, Json] = {
        "role": "assistant",
        "content": list(_answer(message["choices"][0]["message"])),
        "usage": {},
    }
    if usage is not None:
        reused = (
            {} if usage.reused is None else {"cache_read_input_tokens": usage.reused}
        )
        own["usage"] = {"input_tokens": usage.prompt - (usage.reused or 0), **reused}
    return replace(response, message=own)
