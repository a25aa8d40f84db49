"""A picture of servers under load: one panel a measure, one line a server."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from bench.figures import FIRST_TOKEN, ITL_95, RATE, Figure
from bench.loads import Load
from mlxlab.analysis.plots.figures import add_legend, dress, set_title
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import RAMP

__all__ = ["draw"]

_PANELS = (RATE, FIRST_TOKEN, ITL_95)
_MARKERS = "DosX^v"


def draw(figures: Sequence[Figure]) -> Picture:
    """Draw measures over the number of agents that ask at once."""
    picture = Picture(figsize=(9.0, 3.2), layout="constrained")
    for axes, measure in zip(picture.subplots(1, len(_PANELS)), _PANELS, strict=True):
        own = [f for f in figures if (f.load, f.measure) == (Load.AGENTS, measure)]
        _draw_panel(axes, measure, own)
    handles, labels = picture.axes[0].get_legend_handles_labels()
    add_legend(
        picture, handles=handles, labels=labels, loc="outside lower center", ncols=4
    )
    return picture


def _draw_panel(axes: Axes, measure: str, figures: Sequence[Figure]) -> None:
    dress(axes)
    for number, server in enumerate(dict.fromkeys(f.server for f in figures)):
        own = sorted((f.agents, f.value) for f in figures if f.server == server)
        axes.plot(
            *zip(*own, strict=True),
            label=server,
            color=RAMP[number % len(RAMP)],
            marker=_MARKERS[number % len(_MARKERS)],
        )
    axes.set_xticks(sorted({f.agents for f in figures}))
    axes.set_xlabel("agents at once")
    set_title(axes, measure)
    axes.set_ylim(bottom=0)
