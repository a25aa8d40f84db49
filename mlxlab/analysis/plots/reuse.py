"""Figures of what was reused, and of what prompts consist of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mlxlab.analysis.comparison import Comparison
from mlxlab.analysis.plots.figures import (
    SIZE,
    colors,
    make_axes,
    mark_requests,
    request_labels,
    save,
    styles,
)
from mlxlab.prompt import Role

__all__ = ["plot_hit_rate", "plot_memory", "plot_segments", "plot_ttft", "save_plots"]

_MOST_CELLS = 24  # columns of a heat map that leave room for numbers
_DARK = 0.6  # shares above this are bright in cividis


def plot_hit_rate(compared: Comparison) -> Figure:
    """Draw the reused share of each prompt, strategies by requests."""
    rows = compared.requests
    share = rows.assign(share=rows.reused_tokens / rows.prompt_tokens).pivot_table(
        index="strategy", columns=["session", "request"], values="share", sort=False
    )
    figure, axes = make_axes(height=1.6 + 0.32 * len(share))
    axes.grid(visible=False)
    image = axes.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_yticks(range(len(share)), list(share.index))
    mark_requests(axes, share.columns.to_frame(index=False))
    if share.shape[1] <= _MOST_CELLS:
        for (row, column), value in np.ndenumerate(share):
            color = "black" if value > _DARK else "white"
            text = f"{value:.0%}".removesuffix("%")
            axes.text(column, row, text, ha="center", va="center", size=7, color=color)
    figure.colorbar(image, format=PercentFormatter(1.0), label="reused share of prompt")
    return figure


def plot_ttft(compared: Comparison) -> Figure:
    """Draw the seconds to the first token of each request; empty without seconds."""
    timed = compared.requests.dropna(subset=["ttft_s"])
    figure, axes = _lines(timed, "ttft_s", "time to first token [s, log scale]")
    axes.set_yscale("log")
    return figure


def plot_memory(compared: Comparison) -> Figure:
    """Draw the bytes of keys and values held after each request."""
    rows = compared.requests
    mib = rows.assign(mib=rows.stored_bytes / 2**20)
    figure, axes = _lines(mib, "mib", "stored keys and values [MiB]")
    axes.set_ylim(bottom=0)
    return figure


def plot_segments(compared: Comparison) -> Figure:
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
    left = np.zeros(len(table))
    for role, color in zip(roles, colors(len(roles)), strict=True):
        axes.barh(range(len(table)), table[role], left=left, color=color, label=role)
        left += table[role].to_numpy()
    axes.set_yticks(range(len(table)), request_labels(table.index.to_frame()))
    axes.invert_yaxis()
    axes.set_xlabel("prompt tokens")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def save_plots(compared: Comparison, folder: Path) -> list[Path]:
    """Write every plot that has data as PNG into ``folder``; return the files.

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
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _lines(frame: pd.DataFrame, column: str, label: str) -> tuple[Figure, Axes]:
    """A line per strategy over the requests in order, sessions set apart."""
    figure, axes = make_axes(height=SIZE[1])
    order = frame[["session", "request"]].drop_duplicates().reset_index(drop=True)
    position = {tuple(key): i for i, key in enumerate(order.itertuples(index=False))}
    groups = list(frame.groupby("strategy", sort=False))
    for style, (name, rows) in zip(styles(len(groups)), groups, strict=True):
        keys = zip(rows.session, rows.request, strict=True)
        axes.plot([position[k] for k in keys], rows[column], label=name, **style)
    mark_requests(axes, order)
    axes.set_ylabel(label)
    figure.legend(loc="outside right upper", frameon=False)
    return figure, axes
