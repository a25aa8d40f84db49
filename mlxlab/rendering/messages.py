"""The wire schema: what a client of the Messages API sends, as far as it matters.

The schema is open: unknown keys are kept, unknown block types become
:class:`OtherBlock`. Knows nothing of rules, templates or tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from mlxlab.errors import RequestError

__all__ = [
    "AllThinkingTurns",
    "Block",
    "ClearThinking",
    "ClearToolUses",
    "ContextManagement",
    "InputTokens",
    "Message",
    "MessagesRequest",
    "OtherBlock",
    "OtherEdit",
    "RedactedThinkingBlock",
    "TextBlock",
    "Thinking",
    "ThinkingBlock",
    "ThinkingTurns",
    "Tool",
    "ToolReferenceBlock",
    "ToolResultBlock",
    "ToolUseBlock",
    "ToolUses",
    "describe_errors",
    "parse_answer",
    "parse_request",
]


WireT = TypeVar("WireT", bound="Wire")


class Wire(BaseModel):
    """A JSON object of the API; keys that we do not name are kept."""

    model_config = ConfigDict(extra="allow")


class TextBlock(Wire):
    """Plain text."""

    type: Literal["text"] = "text"
    text: str


class ThinkingBlock(Wire):
    """Reasoning, with the signature that proves where it is from."""

    type: Literal["thinking"] = "thinking"
    thinking: str = ""
    signature: str = ""


class RedactedThinkingBlock(Wire):
    """Reasoning that only its issuer can read."""

    type: Literal["redacted_thinking"] = "redacted_thinking"
    data: str = ""


class ToolUseBlock(Wire):
    """A tool call of the assistant."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any] = {}


class ToolReferenceBlock(Wire):
    """Stands for the definition of a deferred tool."""

    type: Literal["tool_reference"] = "tool_reference"
    tool_name: str


class ToolResultBlock(Wire):
    """What a tool gave back: text, or blocks."""

    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    content: str | list[Block] = ""


class OtherBlock(Wire):
    """A block of a type that has no text of its own here (image, document, ...)."""

    type: str


def _open_union(*types: str) -> Discriminator:
    """Tells the members of a union apart; a type that is not named is ``other``."""

    def tag(value: object) -> str:
        if isinstance(value, Mapping):
            kind = value.get("type")
        else:
            kind = getattr(value, "type", "")
        return kind if isinstance(kind, str) and kind in types else "other"

    return Discriminator(tag)


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolReferenceBlock, Tag("tool_reference")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[OtherBlock, Tag("other")],
    _open_union(
        "text",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_reference",
        "tool_result",
    ),
]
ToolResultBlock.model_rebuild()


class Message(Wire):
    """One message. Missing content is an empty one."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block] = ""

    @property
    def blocks(self) -> list[Block]:
        """The content as blocks; string content is one text block."""
        if isinstance(self.content, str):
            return [TextBlock(text=self.content)]
        return self.content


class Tool(Wire):
    """A tool that the model may call."""

    name: str
    description: str = ""
    input_schema: dict[str, Any] = {}
    defer_loading: bool = False


class Thinking(Wire):
    """Whether to reason first: ``enabled``, ``adaptive`` or ``disabled``."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class InputTokens(Wire):
    """A number of prompt tokens."""

    type: Literal["input_tokens"] = "input_tokens"
    value: Annotated[int, Field(ge=0)]


class ToolUses(Wire):
    """A number of tool calls with their results."""

    type: Literal["tool_uses"] = "tool_uses"
    value: Annotated[int, Field(ge=0)]


class ThinkingTurns(Wire):
    """The latest turns of the assistant in which it thought."""

    type: Literal["thinking_turns"] = "thinking_turns"
    value: Annotated[int, Field(ge=1)]


class AllThinkingTurns(Wire):
    """All turns of the assistant; ``"all"`` for short."""

    type: Literal["all"] = "all"


def _written_out(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


class ClearToolUses(Wire):
    """Clear the results of older tool calls once a prompt is long.

    Attributes:
        trigger: what has to be exceeded.
        keep: how many of the latest calls stay as they are.
        clear_at_least: the edit is left out if it would clear less.
        exclude_tools: whose calls stay as they are.
        clear_tool_inputs: whether the calls lose their input too, or whose do.
    """

    type: Literal["clear_tool_uses_20250919"] = "clear_tool_uses_20250919"
    trigger: Annotated[InputTokens | ToolUses, Discriminator("type")] = InputTokens(
        value=100_000
    )
    keep: ToolUses = ToolUses(value=3)
    clear_at_least: InputTokens | None = None
    exclude_tools: list[str] | None = None
    clear_tool_inputs: bool | list[str] | None = None


class ClearThinking(Wire):
    """Clear the thinking of older turns.

    Attributes:
        keep: whose thinking stays. Left out, the API takes one turn or all, depending
            on the model; here it is one.
    """

    type: Literal["clear_thinking_20251015"] = "clear_thinking_20251015"
    keep: Annotated[
        AllThinkingTurns | ThinkingTurns,
        Discriminator("type"),
        BeforeValidator(_written_out),
    ] = ThinkingTurns(value=1)


class OtherEdit(Wire):
    """An edit of a type that we cannot carry out."""

    type: str


class ContextManagement(Wire):
    """Edits of the history, in the order in which they are made."""

    edits: list[
        Annotated[
            Annotated[ClearToolUses, Tag("clear_tool_uses_20250919")]
            | Annotated[ClearThinking, Tag("clear_thinking_20251015")]
            | Annotated[OtherEdit, Tag("other")],
            _open_union("clear_tool_uses_20250919", "clear_thinking_20251015"),
        ]
    ] = []


class MessagesRequest(Wire):
    """A request body. ``max_tokens`` is optional, as count_tokens leaves it out."""

    model: str
    messages: list[Message]
    system: str | list[TextBlock] = ""
    tools: list[Tool] = []
    thinking: Thinking | None = None
    context_management: ContextManagement | None = None
    max_tokens: int | None = None

    @property
    def thinks(self) -> bool:
        """Whether the client asked for thinking, be it by budget or adaptively."""
        return self.thinking is not None and self.thinking.type != "disabled"


def parse_request(body: object, where: str = "request") -> MessagesRequest:
    """Check a decoded request body.

    Args:
        body: the JSON value.
        where: named in the error, such as ``trace.jsonl: request 7``.

    Raises:
        RequestError: not a Messages request, or one without messages.
    """
    request = _validated(MessagesRequest, body, where)
    if not request.messages:
        raise RequestError(f"{where}: messages is empty; give at least one message")
    return request


def parse_answer(message: object, where: str = "response") -> Message:
    """The assistant message of a response, in the form it has in later requests.

    Raises:
        RequestError: no message with a content.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    return _validated(Message, {"role": "assistant", "content": content}, where)


def _validated(schema: type[WireT], value: object, where: str) -> WireT:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise RequestError(f"{where}: {describe_errors(found)}") from None


def describe_errors(errors: Iterable[Mapping[str, Any]]) -> str:
    """Pydantic's errors of one value in one line: where, and what is wrong there.

    Every member of a union reports; the deepest report is about the member that the
    client meant.
    """
    deepest = max(errors, key=lambda error: len(error["loc"]))
    path = [p for p in deepest["loc"] if p != "str" and "[" not in str(p)]
    return f"{'.'.join(map(str, path)) or 'body'}: {deepest['msg']}"
