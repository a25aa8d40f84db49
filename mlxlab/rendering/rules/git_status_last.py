"""Renders the git status behind the tools."""

from __future__ import annotations

from functools import partial

from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.passages import Passages, find_sections
from mlxlab.rendering.rules.registry import register

register(
    Rule(
        name="git-status-last",
        summary="render the git status in the system text behind the tools",
        place="system text",
        reason="it stands in front of the tools, and differs between sessions",
        effect=Effect.MOVED,
        until="2.1.197",
        default=False,
        rank=60,
        apply=Passages(partial(find_sections, begins="gitStatus: "), moved=True),
    )
)
