"""Figures of what was reused, and of what prompts consist of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mlxlab.analysis.plots.figures import (
    SIZE,
    add_legend,
    break_name,
    draw_blocks,
    dress,
    log_seconds,
    make_axes,
    mark_requests,
    request_labels,
)
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import INK, role_style, strategy_styles
from mlxlab.prompt import Role

if TYPE_CHECKING:
    from mlxlab.analysis.comparison import Comparison

__all__ = ["plot_hit_rate", "plot_memory", "plot_segments", "plot_ttft", "save_plots"]

_MOST_CELLS = 24  # columns of a heat map that leave room for numbers
_SHADES = 32
_DARK = 0.6  # shares above this are bright in cividis


def plot_hit_rate(compared: Comparison) -> Picture:
    """Draw the reused share of each prompt, strategies by requests."""
    rows = compared.requests
    stated = rows[rows.reused_tokens.notna()]
    share = stated.assign(
        share=(stated.reused_tokens / stated.prompt_tokens).astype(float)
    ).pivot_table(
        index="strategy", columns=["session", "request"], values="share", sort=False
    )
    figure, axes = make_axes(height=1.6 + 0.32 * len(share))
    axes.grid(visible=False)
    shades = colormaps["cividis"].resampled(_SHADES)
    # Cells, not an image: they stay sharp at any size.
    cells = axes.pcolormesh(share, vmin=0, vmax=1, cmap=shades)
    axes.set_ylim(len(share), 0)
    axes.set_yticks(np.arange(len(share)) + 0.5, list(map(break_name, share.index)))
    mark_requests(axes, share.columns.to_frame(index=False), middle=0.5)
    if share.shape[1] <= _MOST_CELLS:
        for (row, column), value in np.ndenumerate(share):
            if np.isnan(value):  # not stated
                continue
            color = "black" if value > _DARK else "white"
            text, place = f"{value:.0%}".removesuffix("%"), (column + 0.5, row + 0.5)
            axes.text(*place, text, ha="center", va="center", size=7, color=color)
    bar = figure.colorbar(cells, format=PercentFormatter(1.0))
    dress(bar.ax)
    bar.set_label("reused share of prompt", color=INK, size=9)
    bar.outline.set_visible(False)
    return figure


def plot_ttft(compared: Comparison) -> Picture:
    """Draw the seconds to the first token of each request; empty without seconds."""
    timed = compared.requests.dropna(subset=["ttft_s"])
    figure, axes = _lines(timed, "ttft_s", "time to first token (log scale)")
    log_seconds(axes)
    return figure


def plot_memory(compared: Comparison) -> Picture:
    """Draw the bytes of keys and values held after each request."""
    rows = compared.requests.dropna(subset=["stored_bytes"])
    mib = rows.assign(mib=rows.stored_bytes / 2**20)
    figure, axes = _lines(mib, "mib", "stored keys and values [MiB]")
    axes.set_ylim(bottom=0)
    return figure


def plot_segments(compared: Comparison) -> Picture:
    """Draw the tokens of each prompt by kind of content, one bar per request."""
    table = compared.segments.pivot_table(
        index=["session", "request"],
        columns="role",
        values="tokens",
        aggfunc="sum",
        fill_value=0,
        sort=False,
    )
    roles = [str(role) for role in Role if str(role) in table.columns]
    figure, axes = make_axes(height=1.4 + 0.26 * len(table))
    places, left = np.arange(len(table), dtype=float), np.zeros(len(table))
    for role in roles:
        style = role_style(role) | {"linewidth": 0, "label": role}
        draw_blocks(axes, places, left, left + table[role].to_numpy(), **style)
        left = left + table[role].to_numpy()
    axes.autoscale_view()
    axes.set_yticks(range(len(table)), request_labels(table.index.to_frame()))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("prompt tokens")
    add_legend(figure)
    return figure


def save_plots(compared: Comparison, folder: Path) -> list[Path]:
    """Write every plot that has data as SVG into ``folder``; return the files.

    Raises:
        MlxlabError: a file cannot be written.
    """
    figures = {
        "hit_rate": plot_hit_rate(compared),
        "segments": plot_segments(compared),
        "memory": plot_memory(compared),
    }
    if compared.requests.ttft_s.notna().any():
        figures["ttft"] = plot_ttft(compared)
    return [figure.save(folder / f"{name}.svg") for name, figure in figures.items()]


def _lines(frame: pd.DataFrame, column: str, label: str) -> tuple[Picture, Axes]:
    """A line per strategy over the requests in order, sessions set apart."""
    figure, axes = make_axes(height=SIZE[1])
    order = frame[["session", "request"]].drop_duplicates().reset_index(drop=True)
    position = {tuple(key): i for i, key in enumerate(order.itertuples(index=False))}
    groups = list(frame.groupby("strategy", sort=False))
    styles = strategy_styles(str(name) for name, _ in groups)
    for style, (name, rows) in zip(styles.values(), groups, strict=True):
        keys = zip(rows.session, rows.request, strict=True)
        axes.plot([position[k] for k in keys], rows[column], label=name, **style)
    mark_requests(axes, order)
    axes.set_ylabel(label)
    add_legend(figure)
    return figure, axes
