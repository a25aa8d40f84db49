"""The wire schema of Messages API requests, as far as rendering reads them.

The schema is open: unknown keys are kept, unknown block types become
:class:`OtherBlock`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
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
    "FirstErrorOnly",
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


#: Most characters of one part of a place that an error names.
_PART = 60

WireT = TypeVar("WireT", bound="Wire")
T = TypeVar("T")


class FirstErrorOnly(FailFast):
    """Ends the validation of a list at its first error; a list may have millions."""

    __hash__ = object.__hash__  # members of a union are hashed


Items = Annotated[list[T], FirstErrorOnly()]


class Wire(BaseModel):
    """A JSON object of the API. Keys without a field are kept."""

    model_config = ConfigDict(extra="allow")


class TextBlock(Wire):
    """Plain text."""

    type: Literal["text"] = "text"
    text: str


class ThinkingBlock(Wire):
    """Thinking, with the signature that its server gave it."""

    type: Literal["thinking"] = "thinking"
    thinking: str = ""
    signature: str = ""


class RedactedThinkingBlock(Wire):
    """Thinking that only the server that encrypted it can read."""

    type: Literal["redacted_thinking"] = "redacted_thinking"
    data: str = ""


class ToolUseBlock(Wire):
    """A tool call of the assistant."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any] = {}


class ToolReferenceBlock(Wire):
    """A reference to a deferred tool, in place of its definition."""

    type: Literal["tool_reference"] = "tool_reference"
    tool_name: str


class ToolResultBlock(Wire):
    """The result of a tool call: text, or blocks."""

    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    content: str | Items[Block] = ""


class OtherBlock(Wire):
    """A block of a type that is not rendered as text, such as an image."""

    type: str


def _open_union(*types: str) -> Discriminator:
    """Choose a member of a union by its type; types not listed are ``other``."""

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
    """One message. Missing content means empty content."""

    role: Literal["user", "assistant", "system"]
    content: str | Items[Block] = ""

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
    """Whether the model thinks before it answers.

    Attributes:
        type: ``enabled``, ``adaptive`` or ``disabled``.
        budget_tokens: most tokens of thinking.
        display: ``omitted`` keeps the text of thinking from the client.
    """

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
    """A number of assistant turns with thinking, counted from the latest."""

    type: Literal["thinking_turns"] = "thinking_turns"
    value: Annotated[int, Field(ge=1)]


class AllThinkingTurns(Wire):
    """All turns of the assistant. Clients may write ``"all"``."""

    type: Literal["all"] = "all"


def _written_out(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


class ClearToolUses(Wire):
    """Clear the results of older tool calls once a prompt is long.

    Attributes:
        trigger: tokens or tool calls that the request has to exceed.
        keep: number of latest calls that stay as they are.
        clear_at_least: the edit is skipped if it would clear fewer tokens.
        exclude_tools: names of tools with calls that stay as they are.
        clear_tool_inputs: whether to clear the inputs of calls too; or the names of
            the tools with inputs to clear.
    """

    type: Literal["clear_tool_uses_20250919"] = "clear_tool_uses_20250919"
    trigger: Annotated[InputTokens | ToolUses, Discriminator("type")] = InputTokens(
        value=100_000
    )
    keep: ToolUses = ToolUses(value=3)
    clear_at_least: InputTokens | None = None
    exclude_tools: Items[str] | None = None
    clear_tool_inputs: bool | Items[str] | None = None


class ClearThinking(Wire):
    """Clear the thinking of older turns.

    Attributes:
        keep: turns with thinking that stays. Without it, the API keeps one turn or
            all, depending on the model; here it is one.
    """

    type: Literal["clear_thinking_20251015"] = "clear_thinking_20251015"
    keep: Annotated[
        AllThinkingTurns | ThinkingTurns,
        Discriminator("type"),
        BeforeValidator(_written_out),
    ] = ThinkingTurns(value=1)


class OtherEdit(Wire):
    """An edit of an unknown type, which is not carried out."""

    type: str


class ContextManagement(Wire):
    """Edits of the history, in the order in which they are applied."""

    edits: Items[
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
    messages: Items[Message]
    system: str | Items[TextBlock] = ""
    tools: Items[Tool] = []
    thinking: Thinking | None = None
    context_management: ContextManagement | None = None
    max_tokens: int | None = None

    @property
    def thinks(self) -> bool:
        """Whether the client asked for thinking, by budget or adaptively."""
        return self.thinking is not None and self.thinking.type != "disabled"


def parse_request(body: object, where: str = "request") -> MessagesRequest:
    """Check a decoded request body.

    Args:
        body: the JSON value, or a request that was parsed already.
        where: names the request in errors, such as ``trace.jsonl: request 7``.

    Raises:
        RequestError: ``body`` is not a Messages request, or has no messages.
    """
    request = _validated(MessagesRequest, body, where)
    if not request.messages:
        raise RequestError(f"{where}: messages is empty; give at least one message")
    return request


def parse_answer(message: object, where: str = "response") -> Message:
    """Read the assistant message of a response as later requests contain it.

    Args:
        message: the JSON value of the response.
        where: names the response in errors.

    Raises:
        RequestError: ``message`` has no valid content.
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
    """Describe pydantic's errors of one value in one line: the place and the fault.

    Every member of a union reports errors. The deepest one belongs to the member that
    the client meant.
    """
    deepest = max(errors, key=lambda error: len(error["loc"]))
    path = [p for p in deepest["loc"] if p != "str" and "[" not in str(p)]
    named = ".".join(str(part)[:_PART] for part in path)
    return f"{named or 'body'}: {deepest['msg']}"
