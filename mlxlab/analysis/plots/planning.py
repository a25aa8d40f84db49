"""Figures for planning: memory, trials of a search, and what tokens cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from mlxlab.analysis.plots.figures import (
    SIZE,
    add_legend,
    dress,
    in_seconds,
    log_seconds,
    make_axes,
    set_title,
)
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import INK, QUIET, RAMP, strategy_styles
from mlxlab.sizes import format_size

if TYPE_CHECKING:
    from mlxlab.analysis.calibration import Calibration
    from mlxlab.analysis.sweep import Sweep
    from mlxlab.analysis.tuning import Tuning

__all__ = ["plot_capacity", "plot_costs", "plot_trials"]

_BOUNDS = {"optimal": "--", "placement": "-.", "unlimited": ":"}
_LENGTHS = (16, 256, 1024, 4096)  # new tokens, one curve each


def plot_capacity(swept: Sweep) -> Picture:
    """Draw the reused share over memory: a line per strategy, and the bounds.

    One panel per number of users.
    """
    users = list(swept.requests.users.unique())
    figure = Picture(figsize=SIZE, layout="constrained")
    panels = figure.subplots(1, len(users), sharey=True, squeeze=False)[0]
    for axes, number in zip(panels, users, strict=True):
        _draw_capacity(axes, swept, number)
        if len(users) > 1:
            set_title(axes, f"users: {number}")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylim(0, 1)
    panels[0].set_ylabel("reused share of prompts")
    label = "memory for keys and values (log scale)"
    figure.supxlabel(label, size=9, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    add_legend(figure, handles=handles, labels=labels)
    return figure


def _draw_capacity(axes: Axes, swept: Sweep, users: int) -> None:
    dress(axes)
    rows = swept.requests[swept.requests.users == users]
    groups = list(rows.groupby("strategy", sort=False))
    styles = strategy_styles(str(name) for name, _ in groups)
    for style, (name, own) in zip(styles.values(), groups, strict=True):
        share = own.reused_tokens / own.prompt_tokens
        axes.plot(own.capacity, share, label=str(name), **style)
    sizes = sorted(rows.capacity.unique())
    bounds = swept.bounds[swept.bounds.users == users]
    for name, dash in _BOUNDS.items():
        most = bounds[bounds.bound == name]
        if most.empty:
            continue
        flat = name == "unlimited"
        across = sizes if flat else most.memory
        shares = [most.reused.iloc[0]] * len(sizes) if flat else most.reused
        (line,) = axes.plot(across, shares, dash, label=name)
        line.set(color=INK, linewidth=1.2, zorder=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(lambda size, _: format_size(int(size)))


def plot_trials(tuned: Tuning) -> Picture:
    """Draw the cost of every trial, one row per strategy, the best strategy on top."""
    timed = "ttft_mean_s" in tuned.requests
    names = list(tuned.requests.name.unique())
    figure, axes = make_axes(height=1.4 + 0.36 * len(names))
    for place, (name, style) in enumerate(strategy_styles(names).items()):
        own = tuned.requests[tuned.requests.name == name]
        point = style | {"linestyle": "", "alpha": 0.7}
        axes.plot(own.cost, [place] * len(own), **point)
    best = tuned.best
    axes.plot([best.cost], [0], "o", color="none", mec=INK, mew=1.5, ms=11)
    axes.annotate(
        f"recommended: {best.strategy}",
        (best.cost, 0),
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        size=8,
        color=INK,
    )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(in_seconds if timed else "{x:,.0f}")
    cost = "time to the first token, estimated" if timed else "tokens to compute"
    axes.set_xlabel(f"{cost}, mean over requests")
    return figure


def plot_costs(calibrated: Calibration) -> Picture:
    """Draw the measured seconds and the cost model that was fitted to them.

    Left: the prefill of new tokens after cached ones. Right: the restore of those.
    """
    costs = calibrated.costs
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
