"""Figures of what models keep for the tokens they have seen."""

from __future__ import annotations

from collections.abc import Mapping

from mlxlab.analysis.plots.figures import SIZE, dress, label_bar
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import ACCENT, QUIET, RAMP
from mlxlab.models.layout import CacheLayout
from mlxlab.sizes import format_size

__all__ = ["plot_layouts"]

_KIB, _MIB = 1 << 10, 1 << 20


def plot_layouts(layouts: Mapping[str, CacheLayout]) -> Picture:
    """Draw the bytes of a token and of a checkpoint, one row per model.

    Left: bytes of a token. Right: how many tokens are as large as one checkpoint.

    Args:
        layouts: by the name of the model. Its windows are kept at checkpoints.
    """
    figure = Picture(figsize=(SIZE[0], 1.2 + 0.34 * len(layouts)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    tokens = [layout.token_bytes() / _KIB for layout in layouts.values()]
    checkpoints = [layout.checkpoint_bytes() for layout in layouts.values()]
    sizes = [
        size / _KIB / own if own else 0  # of a model that keeps nothing for a token
        for size, own in zip(checkpoints, tokens, strict=True)
    ]
    left.barh(list(layouts), tokens, color=RAMP[0], height=0.6)
    right.barh(list(layouts), sizes, color=ACCENT, height=0.6)
    for place, (size, length) in enumerate(zip(checkpoints, sizes, strict=True)):
        text = format_size(-(-size // _MIB) * _MIB) if size else "none: cut anywhere"
        label_bar(right, (length, place), text, alpha=1 if size else QUIET)
    for axes in (left, right):
        dress(axes)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    left.invert_yaxis()
    left.set_xlabel("KiB for each token")
    right.margins(x=0.25)
    right.set_xlim(left=0)
    right.set_xlabel("tokens as large as one checkpoint")
    return figure
