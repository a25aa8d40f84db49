"""Requests that were chosen in the live view, for the next cell of a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["Selection"]


@dataclass(frozen=True, slots=True, repr=False)
class Selection:
    """Some requests of a server.

    Attributes:
        requests: one row per request, oldest first; the columns are those of
            :class:`~mlxlab.server.metrics.Served`.
    """

    requests: pd.DataFrame

    def __repr__(self) -> str:
        prompt, reused = self.requests[["prompt_tokens", "reused_tokens"]].sum()
        named = ", ".join(f"#{number}" for number in self.requests.request)
        share = reused / prompt if prompt else 0.0
        return (
            f"{len(self.requests)} requests selected ({named or 'none'}): "
            f"{share:.1%} of {prompt:,} prompt tokens reused"
        )

    def plot(self) -> Picture:
        """Draw the reused and computed tokens and the seconds of each request."""
        from mlxlab.analysis.plots import plot_served

        return plot_served(self.requests)
