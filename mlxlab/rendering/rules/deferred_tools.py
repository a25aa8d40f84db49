"""Renders a deferred tool where it is referenced."""

from __future__ import annotations

import json
from dataclasses import replace

from mlxlab.rendering.conversation import Conversation, Part
from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.registry import register


def _deferred_at_reference(conversation: Conversation) -> Conversation:
    deferred = {tool.name: tool for tool in conversation.tools if tool.deferred}
    if not deferred:
        return conversation

    def resolve(part: Part) -> Part:
        tool = deferred.get(part.reference)
        if tool is None:
            return part
        return replace(part, text=json.dumps(tool.function, ensure_ascii=False))

    return replace(
        conversation,
        tools=tuple(tool for tool in conversation.tools if not tool.deferred),
        turns=tuple(
            replace(turn, parts=tuple(map(resolve, turn.parts)))
            for turn in conversation.turns
        ),
    )


register(
    Rule(
        name="deferred-tools",
        summary="render a deferred tool where it is referenced, not among the tools",
        place="tools",
        reason="a tool that is loaded later appears inside the list of tools",
        effect=Effect.MOVED,
        rank=20,
        apply=_deferred_at_reference,
    )
)
