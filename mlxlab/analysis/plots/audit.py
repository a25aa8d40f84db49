"""Figure of what a server claims to have reused, against what was possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlxlab.analysis.plots.figures import (
    add_legend,
    draw_blocks,
    make_axes,
    request_labels,
)
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import ACCENT, INK

if TYPE_CHECKING:
    from mlxlab.analysis.audit.result import Audit

__all__ = ["plot_audit"]

_MOST = 80  # rows that a screen has room for
_PALE, _FAINT = 0.34, 0.12


def plot_audit(audited: Audit) -> Picture:
    """Draw the prompt of each request: claimed, lost, and new at its place.

    Of many requests the latest 80 are drawn. Where the server states nothing, all that
    was possible counts as neither claimed nor lost.
    """
    rows = audited.requests.tail(_MOST).reset_index(drop=True)
    figure, axes = make_axes(height=1.4 + 0.26 * len(rows))
    places = np.arange(len(rows), dtype=float)
    possible = rows.possible_tokens.to_numpy(float)
    claimed = rows.claimed_tokens.astype(float).fillna(rows.possible_tokens).to_numpy()
    ends = rows.prompt_tokens.to_numpy(float)
    known = np.maximum(claimed, possible)
    parts: list[tuple[Any, Any, dict[str, Any]]] = [
        (
            np.zeros(len(rows)),
            claimed,
            {"color": INK, "alpha": _PALE, "label": "claimed"},
        ),
        (claimed, known, {"color": ACCENT, "label": "lost: computed before"}),
        (known, ends, {"color": INK, "alpha": _FAINT, "label": "new at its place"}),
    ]
    for starts, stops, style in parts:
        draw_blocks(axes, places, starts, stops, linewidth=0, **style)
    axes.autoscale_view()
    axes.set_yticks(range(len(rows)), request_labels(rows))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("prompt tokens, as the server counts them")
    add_legend(figure, loc="outside lower center", ncols=3)
    return figure
