"""Passages: parts of the text before the first answer that a client keeps changing.

Text that differs between sessions makes everything behind it new. Behind the tools it
costs itself and little more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from mlxlab.prompt import Role
from mlxlab.rendering.conversation import Conversation, Part, Turn

__all__ = ["Extents", "Find", "Passages", "find_lines", "find_sections"]

Extents: TypeAlias = Iterable[tuple[int, int]]
"""Characters ``[start, stop)`` of a text, in order, without overlap."""

Find: TypeAlias = Callable[[str], Extents]
"""Finds passages in the text of a block."""

_HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
_LINE = re.compile(r"^.*\n?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Passages:
    """Moves passages behind the tools, or leaves them out.

    They are taken from system text, descriptions of tools, and system messages before
    the first answer. Behind an answer they would change history. Moved ones form a
    system message in front of the user's first words, behind what stands there already.

    Attributes:
        find: finds them in a text.
        moved: whether the model still sees them.
    """

    find: Find
    moved: bool

    def __call__(self, conversation: Conversation) -> Conversation:
        """Return the conversation with its passages moved or left out."""
        gone: list[Part] = []
        tools = tuple(
            replace(tool, description=self._cut(tool.label, tool.description, gone))
            for tool in conversation.tools
        )
        changed = replace(
            conversation,
            system=tuple(self._parts(conversation.system, gone)),
            tools=tools,
            turns=tuple(self._turns(conversation.turns, gone)),
        )
        return _inserted(changed, tuple(gone)) if gone and self.moved else changed

    def without(self, text: str) -> str:
        """Return a text without its passages."""
        return self._cut("", text, [])

    def _turns(self, turns: tuple[Turn, ...], gone: list[Part]) -> Iterator[Turn]:
        answered = False
        for turn in turns:
            answered |= turn.role == "assistant"
            if answered or turn.role != "system":
                yield turn
            elif parts := tuple(self._parts(turn.parts, gone)):
                yield replace(turn, parts=parts)

    def _parts(self, parts: Iterable[Part], gone: list[Part]) -> Iterator[Part]:
        for part in parts:
            if part.role is Role.ATTRIBUTION:
                yield part
            elif text := self._cut(part.label, part.text, gone):
                yield replace(part, text=text)

    def _cut(self, label: str, text: str, gone: list[Part]) -> str:
        kept, taken, end = "", [], 0
        for start, stop in self.find(text):
            kept += text[end:start]
            taken.append(text[start:stop].strip("\n"))
            end = stop
        if not taken:
            return text
        gone.append(Part(f"{label}:moved", Role.INLINE_SYSTEM, "\n".join(taken)))
        return (kept + text[end:]).rstrip()


def _inserted(conversation: Conversation, parts: tuple[Part, ...]) -> Conversation:
    """Return the conversation with a system message behind its first ones."""
    turns = conversation.turns
    first = next((i for i, turn in enumerate(turns) if turn.role != "system"), 0)
    moved = Turn("system", parts)
    return replace(conversation, turns=(*turns[:first], moved, *turns[first:]))


def find_lines(text: str, begins: str) -> Iterator[tuple[int, int]]:
    """Yield the lines that begin with ``begins``, white space aside."""
    for line in _LINE.finditer(text):
        if line.group().lstrip().startswith(begins):
            yield line.span()


def find_sections(text: str, begins: str) -> Iterator[tuple[int, int]]:
    """Yield the lines that begin so, each with what follows up to a heading."""
    end = 0
    for start, stop in find_lines(text, begins):
        if start >= end:
            heading = _HEADING.search(text, stop)
            end = heading.start() if heading else len(text)
            yield start, end
