"""Server-sent events: a message into frames, and answers back from their events."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

__all__ = [
    "Accumulator",
    "CompletionAccumulator",
    "MessageAccumulator",
    "frame",
    "frames",
]

log = logging.getLogger(__name__)

Json: TypeAlias = Any

#: Ends a stream of chat completions; it is no event.
_DONE = b"[DONE]"
#: Characters of text per delta: a few deltas per block, as a server sends.
_PIECE = 80
#: The key of a block that a delta's text is appended to.
_APPENDED = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}


def frame(kind: str, **fields: Json) -> bytes:
    """Return one event. Clients need its ``event:`` line, which repeats the type.

    Non-ASCII characters are escaped, because some clients also end a line at U+2028.

    Raises:
        ValueError: the fields hold NaN or infinity.
    """
    value = {"type": kind, **fields}
    data = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


def frames(message: Mapping[str, Json]) -> Iterator[bytes]:
    """Yield the events that a server streams for a complete message."""
    usage = message["usage"]
    start = {**message, "content": [], "stop_reason": None}
    yield frame(
        "message_start", message=start | {"usage": usage | {"output_tokens": 1}}
    )
    for index, block in enumerate(message["content"]):
        yield frame("content_block_start", index=index, content_block=_empty(block))
        for delta in _deltas(block):
            yield frame("content_block_delta", index=index, delta=delta)
        yield frame("content_block_stop", index=index)
    ending = {key: message[key] for key in ("stop_reason", "stop_sequence")}
    yield frame("message_delta", delta=ending, usage=usage)
    yield frame("message_stop")


class Accumulator(ABC):
    """Rebuilds the answer of an event stream, for any cut into chunks.

    It reads the streams of other servers, so it skips events that make no sense.

    Attributes:
        message: what has arrived so far; None before the first event.
    """

    def __init__(self) -> None:
        self.message: dict[str, Json] | None = None
        self._buffer = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Add the next bytes of the stream."""
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:"))
            elif not line and self._data:
                self._take(b"\n".join(self._data))
                self._data = []

    def _take(self, data: bytes) -> None:
        if data.strip() == _DONE:
            return
        try:
            self._apply(_decoded(data))
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            log.warning("an event of the answer was skipped: %r", error)

    @abstractmethod
    def _apply(self, event: Json) -> None:
        """Add one event."""


class CompletionAccumulator(Accumulator):
    """Rebuilds a chat completion, its first choice and its usage."""

    def _apply(self, event: Json) -> None:
        if self.message is None:
            role = {"role": "assistant", "content": ""}
            self.message = {"object": "chat.completion", "choices": [{"message": role}]}
        if error := event.get("error"):
            self.message["error"] = error
        if usage := event.get("usage"):
            self.message["usage"] = usage
        for choice in event.get("choices") or ():
            if not choice.get("index"):
                self._extend(self.message["choices"][0], choice)

    def _extend(self, own: dict[str, Json], choice: Json) -> None:
        message, delta = own["message"], choice.get("delta") or {}
        for key in ("content", "reasoning_content", "reasoning"):
            if delta.get(key):
                message[key] = message.get(key, "") + delta[key]
        for call in delta.get("tool_calls") or ():
            self._extend_call(message.setdefault("tool_calls", []), call)
        if reason := choice.get("finish_reason"):
            own["finish_reason"] = reason

    def _extend_call(self, calls: list[Json], call: Json) -> None:
        index = call.get("index", len(calls))
        if index == len(calls):
            calls.append({"id": "", "function": {"name": "", "arguments": ""}})
        calls[index]["id"] += call.get("id") or ""
        for key, piece in (call.get("function") or {}).items():
            calls[index]["function"][key] += piece or ""


class MessageAccumulator(Accumulator):
    """Rebuilds a message of the Messages API."""

    def __init__(self) -> None:
        super().__init__()
        self._inputs: dict[int, str] = {}

    def _apply(self, event: Json) -> None:
        match event["type"]:
            case "message_start":
                self.message = dict(event["message"])
                self.message["content"] = list(self.message.get("content") or [])
            case "content_block_start":
                self._content().insert(event["index"], dict(event["content_block"]))
            case "content_block_delta":
                self._extend(event["index"], event["delta"])
            case "content_block_stop":
                self._finish(event["index"])
            case "message_delta":
                self._conclude(event)
            case "error":
                error = {"error": event["error"]}
                self.message = event if self.message is None else self.message | error

    def _content(self) -> list[Json]:
        if self.message is None:
            raise ValueError("a block before message_start")
        content: list[Json] = self.message["content"]
        return content

    def _extend(self, index: int, delta: Json) -> None:
        block = self._content()[index]
        kind = delta["type"]
        if kind in _APPENDED:
            key = _APPENDED[kind]
            block[key] = block.get(key, "") + delta[key]
        elif kind == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + delta["partial_json"]
        elif kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]

    def _finish(self, index: int) -> None:
        text = self._inputs.pop(index, "")
        if text:
            self._content()[index]["input"] = _decoded(text)

    def _conclude(self, event: Json) -> None:
        if self.message is None:
            raise ValueError("message_delta before message_start")
        self.message |= event["delta"]
        if "context_management" in event:
            self.message["context_management"] = event["context_management"]
        usage = self.message.get("usage") or {}
        self.message["usage"] = usage | (event.get("usage") or {})


def _empty(block: Mapping[str, Json]) -> dict[str, Json]:
    blank = {"text": "", "thinking": "", "signature": "", "input": {}}
    return {key: blank.get(key, value) for key, value in block.items()}


def _deltas(block: Mapping[str, Json]) -> Iterator[dict[str, str]]:
    match block["type"]:
        case "text":
            yield from _pieces("text_delta", "text", block["text"])
        case "thinking":
            yield from _pieces("thinking_delta", "thinking", block["thinking"])
            yield {"type": "signature_delta", "signature": block["signature"]}
        case "tool_use":
            text = json.dumps(block["input"])
            yield from _pieces("input_json_delta", "partial_json", text)


def _pieces(kind: str, key: str, text: str) -> Iterator[dict[str, str]]:
    for start in range(0, len(text), _PIECE):
        yield {"type": kind, key: text[start : start + _PIECE]}


def _decoded(data: bytes | str) -> Json:
    return json.loads(data, parse_constant=_refuse)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
