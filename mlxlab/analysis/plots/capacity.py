"""Figures of ``plan``: how long users wait, and how many a machine carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from mlxlab.analysis.plots.figures import add_legend, in_seconds, make_axes, over_memory
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import INK, strategy_styles

if TYPE_CHECKING:
    from mlxlab.analysis.capacity.result import Capacity

__all__ = [
    "plot_carried",
    "plot_carried_by_memory",
    "plot_users",
    "save_capacity_plots",
]


def plot_users(found: Capacity) -> Picture:
    """Draw the TTFT of 90 % of the requests over users, a line per setup.

    Without a calibration, the reused share.
    """
    column = "ttft_p90_s" if found.is_timed else "reused"
    figure, axes = make_axes(height=3.6)
    groups = list(found.requests.groupby("setup", sort=False))
    styles = strategy_styles(str(name) for name, _ in groups)
    for style, (name, own) in zip(styles.values(), groups, strict=True):
        axes.plot(own.users, own[column], label=str(name), **style)
    axes.set_xscale("log", base=2)
    users = sorted(found.requests.users.unique())
    axes.set_xticks(users, [str(number) for number in users])
    axes.minorticks_off()
    axes.set_xlabel("agents at the same time (log scale)")
    if found.is_timed:
        axes.axhline(found.manifest["ttft_s"], color=INK, linestyle=":", linewidth=1.2)
        axes.yaxis.set_major_formatter(in_seconds)
        axes.set_ylabel("time to the first token, 90 %")
    else:
        axes.set_ylabel("reused share of prompts")
    axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, handles=handles, labels=labels)
    return figure


def plot_carried(found: Capacity) -> Picture:
    """Draw how many agents each setup carries."""
    names = [str(name) for name in found.requests.setup.unique()]
    figure, axes = make_axes(height=1.2 + 0.36 * len(names))
    carried = [found.carries(name) for name in names]
    axes.barh(range(len(names)), carried, height=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"agents with a TTFT within {found.manifest['ttft_s']:g} s")
    return figure


def plot_carried_by_memory(found: Capacity) -> Picture:
    """Draw how many agents each size of memory carries."""
    figure, axes = make_axes(height=3.0)
    table = found.by_memory()
    axes.plot(table.capacity, table.carries, marker="o")
    over_memory(axes, list(table.capacity))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"agents with a TTFT within {found.manifest['ttft_s']:g} s")
    return figure


def save_capacity_plots(found: Capacity, folder: Path) -> list[Path]:
    """Write the pictures as SVG into ``folder``.

    Returns:
        The files.

    Raises:
        MlxlabError: a file cannot be written.
    """
    figures = {"users": plot_users(found)}
    if found.is_timed:
        figures |= {
            "carried": plot_carried(found),
            "memory": plot_carried_by_memory(found),
        }
    return [figure.save(folder / f"{name}.svg") for name, figure in figures.items()]
