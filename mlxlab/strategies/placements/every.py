"""Places on a grid."""

from __future__ import annotations

from collections.abc import Iterable

from mlxlab.prompt import Prompt
from mlxlab.strategies.placements.base import Placement, register

__all__ = ["Every", "Last"]


@register
class Every(Placement):
    """At multiples of a number of tokens, whatever stands there."""

    name = "every"
    summary = "every N tokens"
    spacing = 2048

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return range(self.number, len(prompt), self.number)


@register
class Last(Placement):
    """At the last multiple of a number of tokens: one checkpoint of each prompt."""

    name = "last"
    summary = "the last multiple of N tokens"
    spacing = 64

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return ((len(prompt) - 1) // self.number * self.number,)
