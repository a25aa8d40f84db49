"""A conversation in the shape that Hugging Face chat templates take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from mlxlab.prompt import Role
from mlxlab.rendering.conversation import Call, Conversation, Part, ToolPart, Turn
from mlxlab.rendering.marks import wrap, wrap_descriptions, wrap_strings

__all__ = ["template_input"]

OpenMark: TypeAlias = Callable[[str, Role], str]


def _no_mark(label: str, role: Role) -> str:
    return ""


def template_input(
    conversation: Conversation, open_mark: OpenMark = _no_mark
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools for ``apply_chat_template``.

    Args:
        conversation: what to render.
        open_mark: called with label and role of each block; its text is wrapped in
            what that returns.
    """
    turns = conversation.turns
    if conversation.system:
        turns = (Turn("system", conversation.system), *turns)
    messages = [_message(turn, conversation.separator, open_mark) for turn in turns]
    return messages, [_tool(tool, open_mark) for tool in conversation.tools]


def _message(turn: Turn, separator: str, open_mark: OpenMark) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role}
    if turn.reasoning is not None:
        message["reasoning_content"] = _text(turn.reasoning, open_mark)
    message["content"] = separator.join(_text(p, open_mark) for p in turn.parts)
    if turn.calls:
        message["tool_calls"] = [_call(call, open_mark) for call in turn.calls]
    return message


def _text(part: Part, open_mark: OpenMark) -> str:
    return wrap(open_mark(part.label, part.role), part.text)


def _call(call: Call, open_mark: OpenMark) -> dict[str, Any]:
    mark = open_mark(call.label, Role.ASSISTANT)
    function = {
        "name": wrap(mark, call.name),
        "arguments": wrap_strings(mark, dict(call.arguments)),
    }
    return {"type": "function", "function": function}


def _tool(tool: ToolPart, open_mark: OpenMark) -> dict[str, Any]:
    mark = open_mark(tool.label, Role.TOOLS)
    definition = wrap_descriptions(mark, tool.function)
    function = definition["function"]
    return {**definition, "function": {**function, "name": wrap(mark, tool.name)}}
