"""Figures of what reuse did to answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mlxlab.analysis.plots.figures import SIZE, add_legend, dress, set_title
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import INK, QUIET, strategy_styles

if TYPE_CHECKING:
    from mlxlab.analysis.fidelity.result import Fidelity

__all__ = ["plot_pareto", "plot_shift", "save_fidelity_plots"]

_LEAST_KLD = 1e-16  # nats; what is less, 0 too, is drawn there
_ACROSS = {
    "recovered": "recovered share of tokens lost to exact reuse",
    "reused": "reused share of prompt tokens",
}
_SWEEP = "shift-"  # edits that shift by a chosen number of tokens


def plot_pareto(found: Fidelity) -> Picture:
    """Draw recovered tokens against divergence, one point per strategy.

    Across: the recovered share of the tokens lost to exact reuse, or the reused share
    of all tokens if no edit lost any. Up: the divergence of the predictions, in the
    median and at the 99.9 % quantile. Lines are the noise floor and quantized weights.
    """
    summary = found.summary()
    across = "recovered" if "recovered" in summary else "reused"
    figure = Picture(figsize=(SIZE[0], 1.3 * SIZE[1]), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    columns = {"kld_median": "median", "kld_999": "99.9 % quantile"}
    for axes, (column, title) in zip(panels, columns.items(), strict=True):
        for name, style in _variant_styles(found).items():
            point = style | {"linestyle": "", "markersize": 8}
            label = name if axes is panels[0] else None
            kld = max(summary[column][name], _LEAST_KLD)
            axes.plot(summary[across][name], kld, label=label, **point)
        dress(axes)
        _mark_baselines(axes, found, column, step=0.19)
        axes.set_yscale("log")
        set_title(axes, title)
        axes.set_xlabel(_ACROSS[across])
    panels[0].set_xlim(-0.04, 1.04)
    panels[0].xaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("KL divergence [nats, log scale]")
    add_legend(figure, loc="outside lower center", ncols=2)
    return figure


def plot_shift(found: Fidelity) -> Picture:
    """Divergence and agreement over the distance that keys were moved by.

    Drawn from the edits ``shift-16``, ``shift-32`` and so on, and from the requests
    behind them in which something was moved.
    """
    figure = Picture(figsize=(SIZE[0], 1.8 * SIZE[1]), layout="constrained")
    kld, top = figure.subplots(2, sharex=True)
    swept = _swept(found)
    for name, style in _variant_styles(found).items():
        own = swept[swept.variant == name].sort_values("distance")
        if len(own):
            kld.plot(own.distance, own.kld_median, label=name, **style)
            top.plot(own.distance, own.same_top, **style)
    for axes, column in ((kld, "kld_median"), (top, "same_top")):
        dress(axes)
        _mark_baselines(axes, found, column)
    kld.set_yscale("log")
    kld.set_ylabel("median KL divergence [nats, log scale]")
    top.yaxis.set_major_formatter(PercentFormatter(1.0))
    top.set_ylabel("same top token")
    top.set_xscale("log", base=2)
    top.xaxis.set_major_formatter("{x:,.0f}")
    top.set_xlabel("distance moved [tokens, log scale]")
    add_legend(figure, loc="outside lower center", ncols=2)
    return figure


def save_fidelity_plots(found: Fidelity, folder: Path) -> list[Path]:
    """Write every plot of ``found`` that has data as SVG; returns the files.

    Raises:
        MlxlabError: a file cannot be written.
    """
    figures = {}
    if found.requests.lost_tokens.any():
        figures["pareto"] = plot_pareto(found)
    if len(_swept(found)):
        figures["shift"] = plot_shift(found)
    return [figure.save(folder / f"{name}.svg") for name, figure in figures.items()]


def _swept(found: Fidelity) -> pd.DataFrame:
    """Variant, median distance, median divergence and agreement, by shift edit."""
    requests = found.requests
    moved = requests[requests.edit.str.startswith(_SWEEP) & (requests["shift"] > 0)]
    positions = found.positions.join(moved, on="row", how="inner")
    groups = positions.groupby(["edit", "variant"], as_index=False, sort=False)
    swept = groups.agg(
        distance=("shift", "median"),
        kld_median=("kld", "median"),
        same_top=("same_top", "mean"),
    )
    return swept.assign(kld_median=swept.kld_median.clip(lower=_LEAST_KLD))


def _variant_styles(found: Fidelity) -> dict[str, dict[str, Any]]:
    """The same in every figure of ``found``."""
    reusing = found.requests.kind.isin(["exact", "approximate"])
    names = found.requests.variant[reusing].unique()
    return strategy_styles(map(str, names))


def _mark_baselines(
    axes: Axes, found: Fidelity, column: str, step: float = 0.13
) -> None:
    """A line for the noise floor and for each bit width, labels ``step`` apart."""
    rows = found.requests[found.requests.kind.isin(["floor", "quantized"])]
    levels = found.summary()[column].reindex(rows.variant.unique())
    for i, (name, level) in enumerate(levels.clip(lower=_LEAST_KLD).items()):
        axes.axhline(level, color=INK, alpha=QUIET, lw=1, ls=":", zorder=1)
        axes.annotate(
            str(name),
            (0.01 + step * i, level),  # lines may be close: each label has its place
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            color=INK,
            alpha=QUIET,
            size=7,
        )
