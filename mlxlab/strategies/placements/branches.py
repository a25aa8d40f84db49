"""Places where prompts part."""

from __future__ import annotations

from collections.abc import Iterable

from mlxlab.prompt import Prompt
from mlxlab.strategies.placements.base import Placement, register

__all__ = ["Branches"]


@register
class Branches(Placement):
    """Where a prompt parts from stored ones: two share this prefix, so a third may."""

    name = "branches"
    summary = "where a prompt parts from the stored ones"
    source = "Marconi, arXiv 2411.19379"

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return (match,)
