"""Canonicalisation: named rules that render equal conversations alike.

Read literally, a request renders differently whenever the client moves a cache marker
or changes a session's header. Each rule removes one such cause. Without the rule, the
conversation is what a server without such a rule would render.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from mlxlab.errors import RuleError, did_you_mean
from mlxlab.prompt import Role
from mlxlab.rendering.conversation import Conversation, Part, read_conversation
from mlxlab.rendering.messages import MessagesRequest

__all__ = ["RULES", "Rule", "canonicalize", "parse_rules"]

Transform: TypeAlias = Callable[[Conversation], Conversation]


def _unchanged(conversation: Conversation) -> Conversation:
    return conversation


@dataclass(frozen=True, slots=True)
class Rule:
    """A named transformation.

    Attributes:
        name: as users write it.
        summary: one clause for help texts.
        apply: transforms a conversation if the rule is in force.
        otherwise: transforms it if not, as a server without the rule does.
    """

    name: str
    summary: str
    apply: Transform
    otherwise: Transform = _unchanged


def canonicalize(request: MessagesRequest, rules: Iterable[str]) -> Conversation:
    """Read a request as a conversation, and apply the rules to it.

    Args:
        request: a checked request.
        rules: names of the rules in force; :data:`RULES` fixes their order.

    Raises:
        RuleError: a name is not in :data:`RULES`.
    """
    names = frozenset(rules)
    _check_names(names)
    conversation = read_conversation(request)
    for rule in RULES.values():
        step = rule.apply if rule.name in names else rule.otherwise
        conversation = step(conversation)
    return conversation


def parse_rules(spec: str) -> tuple[str, ...]:
    """Read ``all``, ``none``, names (``a,b``) or exceptions (``-a,-b``).

    Returns:
        Names in the order of :data:`RULES`.

    Raises:
        RuleError: a name is unknown, or names and exceptions are mixed.
    """
    if spec in {"all", "none"}:
        return tuple(RULES) if spec == "all" else ()
    words = [word.strip() for word in spec.split(",")]
    excluded = {word[1:] for word in words if word.startswith("-")}
    included = {word for word in words if not word.startswith("-")}
    _check_names(excluded | included)
    if excluded and included:
        raise RuleError(f"rules {spec!r}: give names or exceptions (-name), not both")
    return tuple(n for n in RULES if (n in included if included else n not in excluded))


def _check_names(names: Iterable[str]) -> None:
    for name in sorted(names):
        if name not in RULES:
            near, known = did_you_mean(name, RULES), ", ".join(RULES)
            raise RuleError(f"unknown rule {name!r}; known: all, none, {known}{near}")


def _drop_attribution(conversation: Conversation) -> Conversation:
    kept = tuple(p for p in conversation.system if p.role is not Role.ATTRIBUTION)
    return replace(conversation, system=kept)


def _plain_content(conversation: Conversation) -> Conversation:
    tools = tuple(replace(tool, extra=None) for tool in conversation.tools)
    return replace(conversation, tools=tools, separator="\n")


def _hoist_inline_system(conversation: Conversation) -> Conversation:
    inline = [turn for turn in conversation.turns if turn.role == "system"]
    return replace(
        conversation,
        system=(*conversation.system, *(p for turn in inline for p in turn.parts)),
        turns=tuple(turn for turn in conversation.turns if turn.role != "system"),
    )


def _environment_first(conversation: Conversation) -> Conversation:
    """Move a system message only before the first answer: history must not change."""
    turns = conversation.turns
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            break
        if turn.role == "system":
            return replace(conversation, turns=(turn, *turns[:i], *turns[i + 1 :]))
    return conversation


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


#: In the order in which they are applied: turns are moved once they are final.
RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "drop-attribution",
            "leave out the billing header, which changes with session and agent",
            _drop_attribution,
        ),
        Rule(
            "deferred-tools",
            "render a deferred tool where it is referenced, not among the tools",
            _deferred_at_reference,
        ),
        Rule(
            "plain-content",
            "set text blocks off by newlines and drop cache_control from tools",
            _plain_content,
        ),
        Rule(
            "inline-system",
            "keep system messages at their place instead of on top",
            _unchanged,
            otherwise=_hoist_inline_system,
        ),
        Rule(
            "environment-first",
            "render the first inline system message before the first user message",
            _environment_first,
        ),
    )
}
