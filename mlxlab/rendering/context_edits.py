"""Context edits: parts of the history that the client asks to leave out of the prompt.

A client sends the whole history with every request. The cleared parts follow from the
request alone, so every renderer clears the same ones. Implements the API's
``context_management`` as its documentation describes it.
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
"""Replaces the content of a cleared tool result."""

EditType: TypeAlias = Literal["clear_tool_uses_20250919", "clear_thinking_20251015"]
BlockIndex: TypeAlias = tuple[int, int]
"""Index of a message, and of a block in it."""

#: Field of an applied edit that holds its ``number``.
_NUMBER_FIELDS: Mapping[EditType, str] = {
    "clear_tool_uses_20250919": "cleared_tool_uses",
    "clear_thinking_20251015": "cleared_thinking_turns",
}


@dataclass(frozen=True, slots=True)
class AppliedEdit:
    """An edit that made the prompt shorter.

    Attributes:
        type: type of the edit.
        number: number of tool uses or turns that were cleared.
        input_tokens: number of tokens by which the prompt became shorter.
    """

    type: EditType
    number: int
    input_tokens: int

    def wire(self) -> dict[str, str | int]:
        """Return the entry for a response's ``applied_edits``."""
        return {
            "type": self.type,
            _NUMBER_FIELDS[self.type]: self.number,
            "cleared_input_tokens": self.input_tokens,
        }


@dataclass(frozen=True, slots=True)
class Clearing:
    """The blocks that an edit would clear, and its conditions. By default none.

    Attributes:
        number: number of tool uses or turns.
        blocks: replacement for each cleared block; None drops the block.
        above: number of tokens that the prompt has to exceed.
        at_least: number of tokens that the edit has to save.
    """

    number: int = 0
    blocks: Mapping[BlockIndex, Block | None] = field(default_factory=dict)
    above: int = 0
    at_least: int = 1


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool call and its result."""

    call_at: BlockIndex
    call: ToolUseBlock
    result_at: BlockIndex
    result: ToolResultBlock


def edit_context(
    request: MessagesRequest, count: Callable[[MessagesRequest], int]
) -> tuple[MessagesRequest, tuple[AppliedEdit, ...]]:
    """Make a request's context edits, in their order.

    Edits that would not shorten the prompt, and edits of an unknown type, are skipped.

    Args:
        request: is not changed.
        count: returns the number of tokens in a request's prompt. It is called once
            for each edit that may apply, and once more before the first of them.

    Returns:
        The request to render, which asks for no edits; and the edits that were made.
    """
    if request.context_management is None:
        return request, ()
    applied: list[AppliedEdit] = []
    edits = request.context_management.edits
    request = request.model_copy(update={"context_management": None})
    tokens: int | None = None
    for edit in edits:
        if isinstance(edit, OtherEdit):
            continue
        clearing = _plan_clearing(edit, request.messages)
        if not clearing.blocks:
            continue
        tokens = count(request) if tokens is None else tokens
        if tokens <= clearing.above:
            continue
        shorter = _clear(request, clearing.blocks)
        left = count(shorter)
        if tokens - left >= clearing.at_least:
            applied.append(AppliedEdit(edit.type, clearing.number, tokens - left))
            request, tokens = shorter, left
    return request, tuple(applied)


def _plan_clearing(
    edit: ClearToolUses | ClearThinking, messages: list[Message]
) -> Clearing:
    if isinstance(edit, ClearToolUses):
        return _plan_clearing_tool_uses(edit, list(_tool_uses(messages)))
    if isinstance(edit.keep, AllThinkingTurns):
        return Clearing()
    older = _thinking_turns(messages)[: -edit.keep.value]
    return Clearing(len(older), {index: None for turn in older for index in turn})


def _plan_clearing_tool_uses(edit: ClearToolUses, uses: list[ToolUse]) -> Clearing:
    by_tokens = isinstance(edit.trigger, InputTokens)
    if not by_tokens and len(uses) <= edit.trigger.value:
        return Clearing()
    older = [
        use
        for use in uses[: max(0, len(uses) - edit.keep.value)]
        if use.call.name not in (edit.exclude_tools or [])
        and not _defines_tool(use.result)
    ]
    blocks: dict[BlockIndex, Block | None] = {}
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
    """Yield calls with a result, oldest first; a repeated id means the latest call."""
    calls: dict[str, tuple[BlockIndex, ToolUseBlock]] = {}
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


def _defines_tool(result: ToolResultBlock) -> bool:
    """Whether a result defines a tool that later turns may call."""
    return any(isinstance(item, ToolReferenceBlock) for item in result.content)


def _thinking_turns(messages: list[Message]) -> list[list[BlockIndex]]:
    """Group thinking blocks by turn, oldest first, without turns that have none.

    A turn goes on through tool results, even if the client adds text to them.
    """
    turns: dict[int, list[BlockIndex]] = {}
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


def _clear(
    request: MessagesRequest, blocks: Mapping[BlockIndex, Block | None]
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
