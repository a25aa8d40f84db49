"""Renders content without traces of cache markers."""

from __future__ import annotations

from dataclasses import replace

from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.registry import register


def _plain_content(conversation: Conversation) -> Conversation:
    tools = tuple(replace(tool, extra=None) for tool in conversation.tools)
    return replace(conversation, tools=tools, separator="\n")


register(
    Rule(
        name="plain-content",
        summary="set text blocks off by newlines and drop cache_control from tools",
        place="tools and all messages",
        reason="cache_control moves from request to request and would be printed",
        effect=Effect.LEFT_OUT,
        rank=30,
        apply=_plain_content,
    )
)
