"""Leaves the billing header out."""

from __future__ import annotations

from dataclasses import replace

from mlxlab.prompt import Role
from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.registry import register


def _drop_attribution(conversation: Conversation) -> Conversation:
    kept = tuple(p for p in conversation.system if p.role is not Role.ATTRIBUTION)
    return replace(conversation, system=kept)


register(
    Rule(
        name="drop-attribution",
        summary="leave out the billing header, which changes with session and agent",
        place="system text",
        reason="it comes first, and differs between sessions and agents",
        effect=Effect.LEFT_OUT,
        rank=10,
        apply=_drop_attribution,
    )
)
