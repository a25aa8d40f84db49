"""A rule: what it changes, why, for which clients, and what the model still sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.rules.passages import Passages

__all__ = ["Effect", "Rule", "Transform", "unchanged"]

Transform: TypeAlias = Callable[[Conversation], Conversation]


def unchanged(conversation: Conversation) -> Conversation:
    """Return the conversation as it is."""
    return conversation


class Effect(StrEnum):
    """What the model sees of the text that a rule changes."""

    SAME = "the model sees the same text"
    MOVED = "the model sees the text in another place"
    LEFT_OUT = "the model does not see the text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A named transformation of conversations.

    Attributes:
        name: as users write it.
        summary: what it changes, in one clause for help texts.
        place: where it applies: a part of a request.
        reason: why that part breaks prefixes.
        effect: what the model still sees, which is what the rule costs in fidelity.
        since: first client version known to need it; empty if not known.
        until: last client version known to need it; empty if the newest one does.
        default: whether ``all`` includes it.
        rank: place in the order in which rules are applied, lowest first.
        apply: transforms a conversation if the rule is in force.
        otherwise: transforms it if not, as a server without the rule does.
    """

    name: str
    summary: str
    place: str
    reason: str
    effect: Effect
    since: str = ""
    until: str = ""
    default: bool = True
    rank: int = 100
    apply: Transform = unchanged
    otherwise: Transform = unchanged

    @property
    def clients(self) -> str:
        """The client versions that need the rule; empty if all do."""
        bounds = {"from": self.since, "up to": self.until}
        known = [f"{word} {version}" for word, version in bounds.items() if version]
        return f"clients {' '.join(known)}" if known else ""

    def without(self, text: str) -> str:
        """Return the text of a block without what the rule moves or leaves out."""
        return self.apply.without(text) if isinstance(self.apply, Passages) else text

    def settles(self, old: str, new: str) -> bool:
        """Return whether the rule undoes the change of a block's text."""
        return old != new and self.without(old) == self.without(new)
