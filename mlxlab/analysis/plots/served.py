"""Figure of what a live server reused, and how long clients waited."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mlxlab.analysis.plots.figures import (
    SIZE,
    add_legend,
    draw_blocks,
    dress,
    in_seconds,
)
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import INK, strategy_styles

__all__ = ["plot_served"]

_PALE = 0.34
_MOST = 40  # rows that a screen has room for


def plot_served(requests: pd.DataFrame) -> Picture:
    """Draw the prompts of a live server, and the seconds to their first tokens.

    Reused tokens are pale, computed ones in full colour: that of the strategy. Of many
    requests the latest 40 are drawn.

    Args:
        requests: one row per request, oldest first, as ``Server.requests`` holds them.
    """
    names = [f"{i} {name}" for i, name in enumerate(requests.strategy, start=1)]
    shown = requests.assign(name=names).tail(_MOST).reset_index(drop=True)
    figure = Picture(figsize=(SIZE[0], 1.3 + 0.3 * len(shown)), layout="constrained")
    tokens, seconds = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for axes in (tokens, seconds):
        dress(axes)
        axes.grid(visible=False, axis="y")
    _draw_tokens(tokens, shown)
    _draw_seconds(seconds, shown)
    tokens.set_yticks(range(len(shown)), list(shown.name))
    tokens.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    handles = [
        Patch(facecolor=INK, label="full colour: computed"),
        Patch(facecolor=INK, alpha=_PALE, label="pale: reused"),
    ]
    add_legend(figure, handles=handles, loc="outside lower center", ncols=2)
    return figure


def _draw_tokens(axes: Axes, shown: pd.DataFrame) -> None:
    styles = strategy_styles(dict.fromkeys(shown.strategy))
    for strategy, own in shown.groupby("strategy", sort=False):
        reused, prompt = own.reused_tokens, own.prompt_tokens
        pale: dict[str, Any] = {"color": styles[str(strategy)]["color"], "lw": 0}
        _draw_bars(axes, own, np.zeros(len(own)), reused, alpha=_PALE, **pale)
        _draw_bars(axes, own, reused, prompt, **pale)
    axes.set_xlim(0, 1.02 * shown.prompt_tokens.max() if len(shown) else 1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("prompt tokens")


def _draw_seconds(axes: Axes, shown: pd.DataFrame) -> None:
    waited = shown[shown.ttft_s.notna()]
    _draw_bars(axes, waited, np.zeros(len(waited)), waited.ttft_s, color=INK, lw=0)
    axes.set_xlim(0, 1.05 * waited.ttft_s.max() if len(waited) else 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(in_seconds))
    axes.set_xlabel("time to first token")


def _draw_bars(
    axes: Axes, rows: pd.DataFrame, starts: Any, stops: Any, **style: Any
) -> None:
    """Draw a bar for each row, at its place in the frame."""
    places = rows.index.to_numpy(float)
    if len(places):
        edges = (np.asarray(edge, float) for edge in (starts, stops))
        draw_blocks(axes, places, *edges, **style)
