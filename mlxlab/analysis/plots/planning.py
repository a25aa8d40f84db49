"""Figures of what could be set: memory, and what tokens cost on a machine."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from mlxlab.analysis.plots.figures import (
    SIZE,
    add_legend,
    dress,
    in_seconds,
    log_seconds,
    make_axes,
)
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import INK, QUIET, RAMP, strategy_styles
from mlxlab.analysis.tables import spec_names
from mlxlab.replay.cost_model import CostModel
from mlxlab.sizes import format_size

__all__ = ["plot_capacity", "plot_costs"]

_CEILINGS = {"finite": "--", "infinite": ":"}
_LENGTHS = (16, 256, 1024, 4096)  # tokens computed, a curve each


def plot_capacity(swept: pd.DataFrame) -> Picture:
    """Reused share over memory, a line per strategy, ceilings above.

    Args:
        swept: from :func:`mlxlab.sweep`, of one number of users.
    """
    figure, axes = make_axes(height=SIZE[1])
    share = swept.assign(name=spec_names(swept))
    groups = list(share.groupby("name", sort=False))
    styles = strategy_styles(str(name) for name, _ in groups)
    for style, (name, rows) in zip(styles.values(), groups, strict=True):
        axes.plot(rows.capacity, rows.reused_tokens / rows.prompt_tokens, **style)
        axes.lines[-1].set_label(str(name))
    best = share.drop_duplicates("capacity").sort_values("capacity")
    for name, dash in _CEILINGS.items():
        (line,) = axes.plot(best.capacity, best[name] / best.ceiling_tokens, dash)
        line.set(color=INK, linewidth=1.2, zorder=1, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(share.capacity.unique()))
    axes.xaxis.set_major_formatter(lambda size, _: format_size(int(size)))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)
    axes.set_ylabel("reused share of prompts")
    axes.set_xlabel("memory for keys and values [log scale]")
    add_legend(figure)
    return figure


def plot_costs(costs: CostModel) -> Picture:
    """What was measured and the cost model that was fitted to it.

    Left what a prefill of so many tokens takes behind others, right what restoring
    those takes.
    """
    figure = Picture(figsize=SIZE, layout="constrained")
    prefill, restore = figure.subplots(1, 2, width_ratios=(2, 1))
    most = max(point.stop for point in costs.points)
    starts = range(0, most, max(most // 100, 1))
    for length, color in zip(_LENGTHS, RAMP, strict=False):
        points = [p for p in costs.points if p.stop - p.start == length]
        own = [s for s in starts if s + length <= most]
        fitted = [costs.prefill_s(s, s + length) for s in own]
        prefill.plot(own, fitted, color=color, label=f"{length:,} new tokens")
        measured = [p.prefill_s for p in points]
        prefill.plot([p.start for p in points], measured, "o", color=color, ms=4)
    restored = [p for p in costs.points if p.start]
    restore.plot(
        [p.start for p in restored],
        [p.restore_s for p in restored],
        "o",
        color=INK,
        alpha=QUIET,
        ms=4,
    )
    stops = [start for start in starts if start]  # nothing to restore costs nothing
    restore.plot(stops, [costs.restore_s(s) for s in stops], color=INK)
    for axes in (prefill, restore):
        dress(axes)
        axes.set_xlabel("tokens in the cache")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    restore.xaxis.set_major_locator(MaxNLocator(4))
    restore.set_xlim(left=0)
    restore.set_ylim(bottom=0)
    log_seconds(prefill)
    prefill.set_ylabel("prefill (log scale)")
    restore.yaxis.set_major_formatter(FuncFormatter(in_seconds))
    restore.set_ylabel("restore")
    add_legend(figure, loc="outside lower center", ncols=len(_LENGTHS))
    return figure
