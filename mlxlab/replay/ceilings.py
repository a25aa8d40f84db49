"""The most that any exact strategy could reuse on a trace."""

from __future__ import annotations

from collections.abc import Mapping

from mlxlab.strategies import Parameter
from mlxlab.strategies.paged import Paged

__all__ = ["InfiniteMemory"]


class InfiniteMemory(Paged):
    """Keeps every sequence and restores the longest common prefix with any of them.

    No limit, no granularity: an upper bound for every prefix strategy.
    """

    name = "ceiling"
    summary = "infinite memory, token granularity: the most that exact reuse can give"

    def __init__(self, *, token_bytes: int = 1) -> None:
        super().__init__(block=1, capacity=1 << 100, token_bytes=token_bytes)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {}
