"""Places at the ends of system text, tools and environment."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import ClassVar

from mlxlab.prompt import STATIC_ROLES, Prompt, Role
from mlxlab.strategies.placements.base import Placement, register

__all__ = ["Environment", "System", "Tools"]


class _StaticPart(Placement):
    """The end of the leading blocks of some roles."""

    roles: ClassVar[Container[Role]]

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        ends = []
        for segment in prompt.segments:
            if segment.role not in STATIC_ROLES and segment.role is not Role.TEMPLATE:
                break
            if segment.role in self.roles:
                ends.append(segment.stop)
        return ends[-1:]


@register
class System(_StaticPart):
    """Behind the system text; in most templates the tools follow it."""

    name = "system"
    summary = "the end of the system text"
    roles = frozenset({Role.SYSTEM, Role.ATTRIBUTION})


@register
class Tools(_StaticPart):
    """Behind the tool definitions, which agents of one kind share."""

    name = "tools"
    summary = "the end of the tools"
    roles = frozenset({Role.TOOLS})


@register
class Environment(Placement):
    """Behind the first system message among the messages: date, folder, project."""

    name = "environment"
    summary = "the end of the first system message among the messages"

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        inline = (s.stop for s in prompt.segments if s.role is Role.INLINE_SYSTEM)
        first = next(inline, None)
        return () if first is None else (first,)
