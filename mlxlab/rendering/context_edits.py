"""Context edits: what a client asks to be left out of the history that it sends.

The client keeps the whole history and sends it every time; what is cleared follows
from the request alone, so that every renderer clears the same. After the API's
documentation of ``context_management``. Knows nothing of templates and tokens: it is
given a function that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mlxlab.rendering.messages import (
    AllThinkingTurns,
    Block,
    ClearThinking,
    ClearToolUses,
    InputTokens,
    Message,
    MessagesRequest,
    OtherEdit,
    RedactedThinkingBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)

__all__ = ["CLEARED_RESULT", "AppliedEdit", "edit_context"]

CLEARED_RESULT = "[result cleared to save context]"
"""What is rendered in place of a tool result."""

EditType: TypeAlias = Literal["clear_tool_uses_20250919", "clear_thinking_20251015"]
At: TypeAlias = tuple[int, int]
"""A block: index of its message, and its own there."""

_COUNTED: Mapping[EditType, str] = {
    "clear_tool_uses_20250919": "cleared_tool_uses",
    "clear_thinking_20251015": "cleared_thinking_turns",
}


@dataclass(frozen=True, slots=True)
class AppliedEdit:
    """An edit that made the prompt shorter.

    Attributes:
        type: of the edit.
        number: of tool uses or of turns that were cleared.
        input_tokens: by which the prompt is shorter.
    """

    type: EditType
    number: int
    input_tokens: int

    def wire(self) -> dict[str, str | int]:
        """The entry in a response's ``applied_edits``."""
        return {
            "type": self.type,
            _COUNTED[self.type]: self.number,
            "cleared_input_tokens": self.input_tokens,
        }


@dataclass(frozen=True, slots=True)
class Clearing:
    """What an edit would clear, and under which conditions. By default nothing.

    Attributes:
        number: of tool uses or of turns.
        blocks: what stands in a block's place; None drops it.
        above: tokens that the prompt has to exceed.
        at_least: tokens that have to be saved.
    """

    number: int = 0
    blocks: Mapping[At, Block | None] = field(default_factory=dict)
    above: int = 0
    at_least: int = 1


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool call and its result."""

    call_at: At
    call: ToolUseBlock
    result_at: At
    result: ToolResultBlock


def edit_context(
    request: MessagesRequest, count: Callable[[MessagesRequest], int]
) -> tuple[MessagesRequest, tuple[AppliedEdit, ...]]:
    """Make a request's context edits, in their order.

    An edit that would not shorten the prompt is left out, and so is one of a type that
    we do not know.

    Args:
        request: stays as it is.
        count: tokens of a request's prompt; called only if an edit may apply.

    Returns:
        The request to be rendered, which asks for no edits; the edits that were made.
    """
    if request.context_management is None:
        return request, ()
    applied: list[AppliedEdit] = []
    edits = request.context_management.edits
    request = request.model_copy(update={"context_management": None})
    for edit in edits:
        if isinstance(edit, OtherEdit):
            continue
        clearing = _clearing(edit, request.messages)
        if not clearing.blocks or (before := count(request)) <= clearing.above:
            continue
        edited = _cleared(request, clearing.blocks)
        saved = before - count(edited)
        if saved >= clearing.at_least:
            request = edited
            applied.append(AppliedEdit(edit.type, clearing.number, saved))
    return request, tuple(applied)


def _clearing(edit: ClearToolUses | ClearThinking, messages: list[Message]) -> Clearing:
    if isinstance(edit, ClearToolUses):
        return _clearing_of_tool_uses(edit, list(_tool_uses(messages)))
    if isinstance(edit.keep, AllThinkingTurns):
        return Clearing()
    older = _thinking_turns(messages)[: -edit.keep.value]
    return Clearing(len(older), {at: None for turn in older for at in turn})


def _clearing_of_tool_uses(edit: ClearToolUses, uses: list[ToolUse]) -> Clearing:
    by_tokens = isinstance(edit.trigger, InputTokens)
    if not by_tokens and len(uses) <= edit.trigger.value:
        return Clearing()
    older = [
        use
        for use in uses[: max(0, len(uses) - edit.keep.value)]
        if use.call.name not in (edit.exclude_tools or []) and not _defines(use.result)
    ]
    blocks: dict[At, Block | None] = {}
    for use in older:
        blocks[use.result_at] = use.result.model_copy(
            update={"content": CLEARED_RESULT}
        )
        if _loses_input(use.call, edit):
            blocks[use.call_at] = use.call.model_copy(update={"input": {}})
    above = edit.trigger.value if by_tokens else 0
    at_least = edit.clear_at_least.value if edit.clear_at_least else 0
    return Clearing(len(older), blocks, above, max(1, at_least))


def _tool_uses(messages: list[Message]) -> Iterator[ToolUse]:
    """Calls with a result, oldest first; an id that is used again means the latest."""
    calls: dict[str, tuple[At, ToolUseBlock]] = {}
    for k, message in enumerate(messages):
        for j, block in enumerate(message.blocks):
            match block:
                case ToolUseBlock():
                    calls[block.id] = (k, j), block
                case ToolResultBlock() if block.tool_use_id in calls:
                    yield ToolUse(*calls[block.tool_use_id], (k, j), block)


def _loses_input(call: ToolUseBlock, edit: ClearToolUses) -> bool:
    chosen = edit.clear_tool_inputs
    return call.name in chosen if isinstance(chosen, list) else bool(chosen)


def _defines(result: ToolResultBlock) -> bool:
    """Whether it brings the definition of a tool that can be called from then on."""
    return any(isinstance(item, ToolReferenceBlock) for item in result.content)


def _thinking_turns(messages: list[Message]) -> list[list[At]]:
    """Thinking blocks by turn, oldest first, without turns that have none.

    A turn goes on while tools give results, whatever the client adds to them.
    """
    turns: dict[int, list[At]] = {}
    turn = 0
    for k, message in enumerate(messages):
        if message.role == "user" and not _has_result(message):
            turn = k
        for j, block in enumerate(message.blocks):
            if isinstance(block, ThinkingBlock | RedactedThinkingBlock):
                turns.setdefault(turn, []).append((k, j))
    return list(turns.values())


def _has_result(message: Message) -> bool:
    return any(isinstance(block, ToolResultBlock) for block in message.blocks)


def _cleared(
    request: MessagesRequest, blocks: Mapping[At, Block | None]
) -> MessagesRequest:
    messages = list(request.messages)
    for k in {k for k, _ in blocks}:
        content = [
            kept
            for j, block in enumerate(messages[k].blocks)
            if (kept := blocks.get((k, j), block)) is not None
        ]
        messages[k] = messages[k].model_copy(update={"content": content})
    return request.model_copy(update={"messages": messages})
