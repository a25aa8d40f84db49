"""Places on a grid."""

from __future__ import annotations

from collections.abc import Iterable

from mlxlab.prompt import Prompt
from mlxlab.strategies.placements.base import Placement, register

__all__ = ["Every"]


@register
class Every(Placement):
    """At multiples of a number of tokens, whatever stands there."""

    name = "every"
    summary = "every N tokens"
    spacing = 2048

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return range(self.number, len(prompt), self.number)
