"""Renders the environment in front of the user's first words."""

from __future__ import annotations

from dataclasses import replace

from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.registry import register


def _environment_first(conversation: Conversation) -> Conversation:
    """Move a system message only before the first answer: history must not change."""
    turns = conversation.turns
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            break
        if turn.role == "system":
            return replace(conversation, turns=(turn, *turns[:i], *turns[i + 1 :]))
    return conversation


register(
    Rule(
        name="environment-first",
        summary="render the first inline system message before the first user message",
        place="system messages",
        reason="the environment stands behind the user's first words",
        effect=Effect.MOVED,
        rank=50,
        apply=_environment_first,
    )
)
