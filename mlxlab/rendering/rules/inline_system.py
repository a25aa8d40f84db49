"""Keeps system messages at their place."""

from __future__ import annotations

from dataclasses import replace

from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.registry import register


def _hoist_inline_system(conversation: Conversation) -> Conversation:
    inline = [turn for turn in conversation.turns if turn.role == "system"]
    return replace(
        conversation,
        system=(*conversation.system, *(p for turn in inline for p in turn.parts)),
        turns=tuple(turn for turn in conversation.turns if turn.role != "system"),
    )


register(
    Rule(
        name="inline-system",
        summary="keep system messages at their place instead of on top",
        place="system messages",
        reason="on top, each new one shifts everything behind it",
        effect=Effect.SAME,
        rank=40,
        otherwise=_hoist_inline_system,
    )
)
