"""Figures of a diagnosis: what the recommended settings change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from mlxlab.analysis.plots.figures import NARROW, dress, label_bar, set_title
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import ACCENT, INK, RAMP

if TYPE_CHECKING:
    from mlxlab.analysis.doctor.result import Diagnosis

__all__ = ["plot_gain"]

_NAMES = ("today", "recommended")
_COLOURS = (ACCENT, RAMP[4])


def plot_gain(found: Diagnosis) -> Picture:
    """Draw reused share and seconds, today and as recommended, with their errors.

    It is narrow enough for a telephone.
    """
    figure = Picture(figsize=(NARROW, 2.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, gridspec_kw={"hspace": 0.15})
    _draw_pair(upper, found.shares, found.share_error, "{:.0%}", most=1.0)
    set_title(upper, "prompt tokens reused")
    relative = found.seconds_error
    error = None if relative is None else relative * found.seconds[1]
    _draw_pair(lower, found.seconds, error, "{:.1f} s")
    set_title(lower, "time to the first token, in the mean")
    return figure


def _draw_pair(
    axes: Axes,
    values: tuple[float, float],
    error: float | None,
    form: str,
    most: float = math.inf,
) -> None:
    """Draw two bars from 0, the second with its error, and write their values.

    Args:
        axes: what to draw on.
        values: today and as recommended.
        error: of the second, in the same unit; None if it is not known.
        form: of a value.
        most: that a value can be.
    """
    dress(axes)
    axes.barh(_NAMES, values, color=_COLOURS, height=0.62)
    texts = [form.format(value) for value in values]
    ends = list(values)
    if error is not None:
        ends[1] = min(values[1] + error, most)
        around = [[min(error, values[1])], [ends[1] - values[1]]]
        axes.errorbar(values[1], 1, xerr=around, color=INK, capsize=3, linewidth=1.2)
        texts[1] += f" ± {form.format(error)}"
    for place, (end, text) in enumerate(zip(ends, texts, strict=True)):
        label_bar(axes, (end, place), text)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(ends) or 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
