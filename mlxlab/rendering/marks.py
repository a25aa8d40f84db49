"""Marks: invisible characters that show where a template printed each block.

A mark is one private-use character. It goes inside the outer white space of a text. So
a template that strips, splits on newlines or dumps JSON treats marked and plain text
alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlxlab.prompt import Role

__all__ = ["Extent", "Marks"]

_FIRST = 0xF0000
_LAST = 0xFFFFD
_MARK = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")


@dataclass(frozen=True, slots=True)
class Extent:
    """Characters ``[start, stop)`` of a rendered text that came from one block."""

    label: str
    role: Role
    start: int
    stop: int


@dataclass(slots=True)
class Marks:
    """The marks of one rendered text.

    Attributes:
        blocks: label and role of each marked block; its index is that of its mark.
    """

    blocks: list[tuple[str, Role]] = field(default_factory=list)

    def open(self, label: str, role: Role) -> str:
        """Return a new mark, to be put around every text of one block.

        The mark is empty once the private-use plane is used up; such blocks are not
        found.
        """
        index = _FIRST + len(self.blocks)
        self.blocks.append((label, role))
        return chr(index) if index <= _LAST else ""

    def locate(self, marked: str, plain: str) -> tuple[Extent, ...] | None:
        """Return the extents of the blocks in ``plain``, in order.

        A block reaches from its first mark to its last. It is widened to whole lines
        as far as no other block is there: braces, tags and turn ends belong to it.

        Args:
            marked: the rendered text with marks.
            plain: the rendered text without marks.

        Returns:
            None if the two texts differ in more than marks.
        """
        if _MARK.sub("", marked) != plain:
            return None
        ends: dict[int, tuple[int, int]] = {}
        for marks_before, match in enumerate(_MARK.finditer(marked)):
            index = ord(match.group()) - _FIRST
            if index >= len(self.blocks):
                return None
            position = match.start() - marks_before
            ends[index] = (ends.get(index, (position, 0))[0], position)
        extents = [Extent(*self.blocks[i], *ends[i]) for i in ends]
        return _widen(sorted(extents, key=lambda e: (e.start, e.stop)), plain)


def wrap(mark: str, text: str) -> str:
    """Put ``mark`` around ``text``, inside its white space; leave blank text alone."""
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    return text[:start] + mark + core + mark + text[start + len(core) :]


def wrap_strings(mark: str, value: Any) -> Any:
    """Wrap every string in ``value``, except keys."""
    match value:
        case str():
            return wrap(mark, value)
        case list():
            return [wrap_strings(mark, item) for item in value]
        case Mapping():
            return {key: wrap_strings(mark, item) for key, item in value.items()}
    return value


def wrap_descriptions(mark: str, value: Any) -> Any:
    """Wrap the strings under ``description`` in ``value``, at any depth.

    Templates branch on other strings of a schema, such as ``type``.
    """
    match value:
        case list():
            return [wrap_descriptions(mark, item) for item in value]
        case Mapping():
            return {
                key: wrap(mark, item)
                if key == "description" and isinstance(item, str)
                else wrap_descriptions(mark, item)
                for key, item in value.items()
            }
    return value


def _widen(extents: list[Extent], plain: str) -> tuple[Extent, ...]:
    widened: list[Extent] = []
    for i, extent in enumerate(extents):
        floor = widened[-1].stop if widened else 0
        ceiling = extents[i + 1].start if i + 1 < len(extents) else len(plain)
        start = plain.rfind("\n", floor, extent.start) + 1 or floor
        newline = plain.find("\n", extent.stop, ceiling)
        stop = newline + 1 if newline >= 0 else ceiling
        if newline < 0 and i + 1 < len(extents):
            # Two blocks on one line: the text between them goes to the second.
            stop = min(extent.stop, ceiling)
        start, stop = max(start, floor), max(stop, floor)
        widened.append(replace(extent, start=min(start, stop), stop=stop))
    return tuple(widened)
