"""The figure of ``evictions``: what policies reuse at each size of memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.ticker import PercentFormatter

from mlxlab.analysis.eviction.result import BOUND_NAMES
from mlxlab.analysis.plots.figures import SIZE, add_legend, make_axes, over_memory
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import INK, strategy_styles
from mlxlab.strategies.eviction import DEFAULT

if TYPE_CHECKING:
    from mlxlab.analysis.eviction.result import Evictions

__all__ = ["plot_evictions", "save_eviction_plots"]

_DASHES = {"storing": ":", "optimal": "--"}


def plot_evictions(found: Evictions) -> Picture:
    """Draw the reused share over memory: a line per policy, and both bounds.

    The line of ``lru`` is its curve where there is one, and goes on to half the least
    size and to twice the largest.
    """
    figure, axes = make_axes(height=SIZE[1])
    groups = {str(n): own for n, own in found.requests.groupby("policy", sort=False)}
    # Named as variants of one strategy, which differ in colour and marker.
    styles = strategy_styles(f"paged:evict={name}" for name in groups)
    for own_style, (name, own) in zip(styles.values(), groups.items(), strict=True):
        style = own_style | {"linestyle": "-"}  # dashes are for bounds
        share = own.reused_tokens / own.prompt_tokens
        if name == DEFAULT and len(found.curve):
            curve = found.curve.reused_tokens / own.prompt_tokens.iloc[0]
            axes.plot(found.curve.capacity, curve, **style | {"marker": ""})
            axes.plot(own.capacity, share, **style | {"linestyle": ""})
            axes.plot([], [], label=name, **style)  # both in one key of the legend
        else:
            axes.plot(own.capacity, share, label=name, **style)
    for bound, dash in _DASHES.items():
        most = found.bounds[found.bounds.bound == bound]
        (line,) = axes.plot(most.memory, most.reused, dash, label=BOUND_NAMES[bound])
        line.set(color=INK, linewidth=1.2, zorder=1)
    over_memory(axes, sorted(found.requests.capacity.unique()))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)
    axes.set_ylabel("reused share of prompts")
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, handles=handles, labels=labels)
    return figure


def save_eviction_plots(found: Evictions, folder: Path) -> list[Path]:
    """Write the picture as SVG into ``folder``.

    Returns:
        The file.

    Raises:
        MlxlabError: the file cannot be written.
    """
    return [plot_evictions(found).save(folder / "evictions.svg")]
