"""A request in the chat template's terms: system text, tools and turns.

Each part is labelled with the wire block it came from. This is the literal reading of
a request; :mod:`mlxlab.rendering.rules` then undoes habits of clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlxlab.errors import RequestError
from mlxlab.prompt import Role
from mlxlab.rendering.messages import (
    Block,
    Message,
    MessagesRequest,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)

__all__ = [
    "Call",
    "Conversation",
    "Part",
    "ToolPart",
    "Turn",
    "assistant_turns",
    "read_conversation",
    "split_begun",
]

_ATTRIBUTION = "x-anthropic-billing-header"


@dataclass(frozen=True, slots=True)
class Part:
    """Text of one wire block.

    Attributes:
        label: names the block, see :class:`mlxlab.prompt.Segment`.
        role: its role in the conversation.
        text: as the client sent it.
        reference: name of the tool that a ``tool_reference`` block stands for.
        signature: of a thinking block.
    """

    label: str
    role: Role
    text: str
    reference: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of the assistant."""

    label: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message in the template's terms."""

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...] = ()
    thinking: Part | None = None
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolPart:
    """A tool definition; ``extra`` holds the wire keys that have no field here."""

    label: str
    name: str
    description: str
    input_schema: Mapping[str, Any]
    deferred: bool = False
    extra: Mapping[str, Any] | None = None

    @property
    def function(self) -> dict[str, Any]:
        """The definition in the form that chat templates expect."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.input_schema,
            },
            **(self.extra or {}),
        }


@dataclass(frozen=True, slots=True)
class Conversation:
    """System text, tools and turns, in the order in which they are rendered.

    Attributes:
        system: parts of the system text.
        tools: their definitions.
        turns: the messages, in the template's roles.
        thinking: whether the answer may begin with thinking.
        separator: printed between the parts of one message. Empty by default, as in
            templates that print a list of blocks.
        begun: the beginning of the answer, if the client wrote one.
    """

    system: tuple[Part, ...]
    tools: tuple[ToolPart, ...]
    turns: tuple[Turn, ...]
    thinking: bool
    separator: str = ""
    begun: Part | None = None


def read_conversation(request: MessagesRequest) -> Conversation:
    """Read a request as it is: nothing is moved, nothing left out."""
    return Conversation(
        system=tuple(_system_parts(request.system)),
        tools=tuple(_tool_part(i, tool) for i, tool in enumerate(request.tools)),
        turns=tuple(
            turn
            for k, message in enumerate(request.messages)
            for turn in _turns(k, message)
        ),
        thinking=request.thinks,
    )


def split_begun(conversation: Conversation, where: str) -> Conversation:
    """Turn a last assistant message into the beginning of the answer.

    Args:
        conversation: ends with any turn.
        where: names the request in errors.

    Raises:
        RequestError: the last assistant message holds more than text.
    """
    last = conversation.turns[-1] if conversation.turns else None
    if last is None or last.role != "assistant":
        return conversation
    if last.calls or last.thinking:
        raise RequestError(
            f"{where}: messages: the last message is the assistant's and holds more "
            "than text; end with a user message, such as the results of its calls"
        )
    text = conversation.separator.join(part.text for part in last.parts)
    begun = Part(last.parts[0].label, Role.ASSISTANT, text) if text else None
    # An answer that began with text does not go back to thinking.
    return replace(
        conversation, turns=conversation.turns[:-1], thinking=False, begun=begun
    )


def _system_parts(system: str | list[TextBlock]) -> Iterator[Part]:
    texts = [system] if isinstance(system, str) else [block.text for block in system]
    for j, text in enumerate(texts):
        if text.startswith(_ATTRIBUTION):
            yield Part("attribution", Role.ATTRIBUTION, text)
        elif text:
            yield Part(f"system[{j}]", Role.SYSTEM, text)


def _tool_part(i: int, tool: Tool) -> ToolPart:
    extra = {
        k: v for k, v in (tool.model_extra or {}).items() if k not in {"type", "strict"}
    }
    return ToolPart(
        label=f"tools[{i}]:{tool.name}",
        name=tool.name,
        description=tool.description,
        input_schema=tool.input_schema,
        deferred=tool.defer_loading,
        extra=extra or None,
    )


def _turns(k: int, message: Message) -> Iterator[Turn]:
    match message.role:
        case "system":
            blocks = _labelled(k, message)
            parts = (_part(label, Role.INLINE_SYSTEM, block) for label, block in blocks)
            yield Turn("system", tuple(parts))
        case "assistant":
            yield from assistant_turns(k, message)
        case "user":
            yield from _user_turns(k, message)


def _labelled(k: int, message: Message) -> Iterator[tuple[str, Block]]:
    for j, block in enumerate(message.blocks):
        yield f"messages[{k}].{block.type}[{j}]", block


def _part(label: str, role: Role, block: Block) -> Part:
    match block:
        case TextBlock():
            return Part(label, role, block.text)
        case ToolReferenceBlock():
            return Part(label, role, block.tool_name, reference=block.tool_name)
        case _:
            # A payload may be megabytes of base64 that no template can print.
            return Part(label, role, f"[{block.type}]")


def _user_turns(k: int, message: Message) -> Iterator[Turn]:
    """Make a turn of each tool result, and of the blocks between two results."""
    pending: list[Part] = []
    for label, block in _labelled(k, message):
        if isinstance(block, ToolResultBlock):
            if pending:
                yield Turn("user", tuple(pending))
                pending = []
            yield Turn("tool", tuple(_result_parts(label, block)))
        else:
            pending.append(_part(label, Role.USER, block))
    if pending:
        yield Turn("user", tuple(pending))


def _result_parts(label: str, block: ToolResultBlock) -> Iterator[Part]:
    inner = block.content
    for item in [TextBlock(text=inner)] if isinstance(inner, str) else inner:
        yield _part(label, Role.TOOL_RESULT, item)


def assistant_turns(k: int, message: Message) -> Iterator[Turn]:
    """Return the turns of assistant message ``k``.

    Templates know one order within a turn: thinking, text, calls. Blocks in another
    order start a new turn, so that nothing moves.
    """
    turn = Turn("assistant")
    for label, block in _labelled(k, message):
        match block:
            case ThinkingBlock() | RedactedThinkingBlock():
                if turn.parts or turn.calls or turn.thinking:
                    yield turn
                    turn = Turn("assistant")
                turn = replace(turn, thinking=_thinking_part(label, block))
            case ToolUseBlock():
                call = Call(f"{label}:{block.name}", block.name, block.input)
                turn = replace(turn, calls=(*turn.calls, call))
            case _:
                if turn.calls:
                    yield turn
                    turn = Turn("assistant")
                part = _part(label, Role.ASSISTANT, block)
                turn = replace(turn, parts=(*turn.parts, part))
    yield turn


def _thinking_part(label: str, block: ThinkingBlock | RedactedThinkingBlock) -> Part:
    if isinstance(block, ThinkingBlock):
        return Part(label, Role.ASSISTANT, block.thinking, signature=block.signature)
    # A redacted block has no text that could be rendered.
    return Part(label, Role.ASSISTANT, "")
