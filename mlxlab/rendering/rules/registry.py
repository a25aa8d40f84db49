"""Rules by name, and the text that chooses among them."""

from __future__ import annotations

from collections.abc import Iterable

from mlxlab.errors import RuleError, did_you_mean
from mlxlab.rendering.conversation import Conversation, read_conversation
from mlxlab.rendering.messages import MessagesRequest
from mlxlab.rendering.rules.base import Rule
from mlxlab.rendering.rules.written import read_written

__all__ = [
    "RULES",
    "canonicalize",
    "find_rule",
    "label_rules",
    "parse_rules",
    "register",
]

RULES: dict[str, Rule] = {}
"""Registered rules by name, in the order in which they are applied."""


def register(rule: Rule) -> Rule:
    """List a rule in :data:`RULES`, in the place of an earlier one of its name."""
    RULES[rule.name] = rule
    ranked = sorted(RULES.items(), key=lambda item: item[1].rank)
    RULES.clear()
    RULES.update(ranked)
    return rule


def find_rule(name: str) -> Rule:
    """Return the rule with that name, or the one that the text describes.

    Raises:
        RuleError: there is none; the message lists all names.
    """
    rule = RULES.get(name) or read_written(name)
    if rule is None:
        near, known = did_you_mean(name, RULES), ", ".join(RULES)
        raise RuleError(
            f"unknown rule {name!r}; known: all, none, {known}, move:WORDS, "
            f"drop:WORDS{near}"
        )
    return rule


def canonicalize(request: MessagesRequest, rules: Iterable[str]) -> Conversation:
    """Read a request as a conversation, and apply the rules to it.

    Args:
        request: a checked request.
        rules: names of the rules in force. :data:`RULES` fixes their order; written
            ones come last.

    Raises:
        RuleError: see :func:`find_rule`.
    """
    chosen = {name: find_rule(name) for name in rules}
    conversation = read_conversation(request)
    for rule in RULES.values():
        step = rule.apply if rule.name in chosen else rule.otherwise
        conversation = step(conversation)
    for name, rule in chosen.items():
        if name not in RULES:
            conversation = rule.apply(conversation)
    return conversation


def parse_rules(spec: str) -> tuple[str, ...]:
    """Read ``all``, ``none``, names (``a,b``) or exceptions (``-a,-b``).

    ``all`` stands for the rules that are on by default. Exceptions are made to these,
    and names behind ``all`` are added: ``all,-a,b``.

    Returns:
        Names in the order of :data:`RULES`, then written rules as they were given.

    Raises:
        RuleError: a name is unknown, or names and exceptions are mixed without ``all``.
    """
    if spec == "none":
        return ()
    words = [word.strip() for word in spec.split(",")]
    excluded = {word[1:] for word in words if word.startswith("-")}
    included = dict.fromkeys(word for word in words if not word.startswith("-"))
    named = [name for name in included if name != "all"]
    for name in sorted((*excluded, *named)):
        find_rule(name)
    if excluded and named and "all" not in included:
        raise RuleError(
            f"rules {spec!r}: give names or exceptions (-name), not both; or all first"
        )
    base = () if named and "all" not in included else _defaults()
    chosen = {name for name in base if name not in excluded}.union(named)
    return tuple(name for name in dict.fromkeys((*RULES, *named)) if name in chosen)


def label_rules(rules: tuple[str, ...]) -> str:
    """Return the shortest text that :func:`parse_rules` reads as these rules."""
    if not rules:
        return "none"
    kept = [name for name in _defaults() if name in rules]
    missing = [f"-{name}" for name in _defaults() if name not in rules]
    if len(missing) >= len(kept):
        return ",".join(rules)
    more = [name for name in rules if name not in kept]
    return ",".join([*(["all"] if more or not missing else []), *missing, *more])


def _defaults() -> tuple[str, ...]:
    return tuple(rule.name for rule in RULES.values() if rule.default)
