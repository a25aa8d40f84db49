"""A script of answers: the replies to a client when there is no model.

A JSON file ``{"conversations": [{"match": REGEX, "replies": [[block, ...], ...]},
...], "otherwise": [block, ...], "latency_s": SECONDS}``; ``latency_s`` is optional.
Replies depend on the request alone, so sub-agents and sessions can run side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from uuid import uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ValidationError,
)

from mlxlab.content import read_whole
from mlxlab.errors import ScriptError
from mlxlab.traces.schema import Json, decode, encode

__all__ = ["Script", "estimated_tokens", "read_script"]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Text(_Closed):
    """A text block."""

    type: Literal["text"]
    text: str


class Thinking(_Closed):
    """A thinking block."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUse(_Closed):
    """A tool call."""

    type: Literal["tool_use"]
    name: str
    input: dict[str, Json] = {}


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Block = Annotated[Text | Thinking | ToolUse, Discriminator("type")]
Reply: TypeAlias = Annotated[tuple[Block, ...], Field(min_length=1)]


class Conversation(_Closed):
    """Replies, in order, to the user message whose text contains ``match``."""

    match: Annotated[str, AfterValidator(_compiles)]
    replies: Annotated[tuple[Reply, ...], Field(min_length=1)]


class Script(_Closed):
    """Conversations, and the reply for requests that none of them matches.

    Each answer takes ``latency_s`` seconds, one after the other as on a local model.
    Without it, agents that work at the same time do not take turns.
    """

    conversations: tuple[Conversation, ...]
    otherwise: Reply
    latency_s: Annotated[float, Field(ge=0, le=60)] = 0.0

    def answer(self, body: Mapping[str, Json]) -> dict[str, Json]:
        """Return the message that answers a request.

        The latest user message that a conversation matches selects the conversation.
        The number of assistant messages after it selects the reply. Each message gets a
        new id, because clients merge messages of equal id. The usage is an estimate.
        """
        content = [_wire(block) for block in self._reply(body.get("messages"))]
        calls = any(block["type"] == "tool_use" for block in content)
        return {
            "id": f"msg_{uuid4().hex[:24]}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", ""),
            "content": content,
            "stop_reason": "tool_use" if calls else "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": estimated_tokens(body),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": estimated_tokens(content),
            },
        }

    def _reply(self, messages: Json) -> Sequence[Block]:
        messages = messages if isinstance(messages, list) else []
        replied = 0
        for message in reversed(messages):
            role = message.get("role") if isinstance(message, dict) else None
            replied += role == "assistant"
            found = self._matching(message) if role == "user" else None
            if found is not None:
                replies = found.replies
                return replies[replied] if replied < len(replies) else self.otherwise
        return self.otherwise

    def _matching(self, message: Mapping[str, Json]) -> Conversation | None:
        texts = list(_texts(message.get("content")))
        for conversation in self.conversations:
            if any(re.search(conversation.match, text) for text in texts):
                return conversation
        return None


def read_script(path: str | Path) -> Script:
    """Read a script of answers.

    Raises:
        ScriptError: the file cannot be read or is not a script; the message says where.
    """
    try:
        return Script.model_validate(decode(read_whole(Path(path))))
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}; give a script (.json)") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        at = ".".join(map(str, first["loc"])) or "script"
        raise ScriptError(f"{path}: {at}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise ScriptError(f"{path}: not JSON ({error}); give a script") from None


def estimated_tokens(value: Json) -> int:
    """Estimate a token count without a tokenizer: four bytes of JSON per token."""
    return max(1, len(encode(value)) // 4)


def _wire(block: Block) -> dict[str, Json]:
    wire = block.model_dump()
    if isinstance(block, ToolUse):
        wire = {"type": "tool_use", "id": f"toolu_{uuid4().hex[:24]}"} | wire
    return wire


def _texts(content: Json) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for block in content:
            if isinstance(block, dict) and block.get("type") == "text":
                yield str(block.get("text", ""))
