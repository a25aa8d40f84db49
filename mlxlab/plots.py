"""Figures from the rows of a comparison, or of findings. Draws; computes nothing new.

Along an axis of requests ``2 #7`` is request 7, of the second session; ``2b #7`` is its
second sub-agent's.

Figures are made without pyplot, which keeps global state and is not safe on Jupyter's
callback threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mlxlab.errors import MlxlabError
from mlxlab.files import replaced
from mlxlab.prompt import Role
from mlxlab.replay.findings import Fidelity
from mlxlab.replay.report import contender_names

__all__ = [
    "plot_hit_rate",
    "plot_memory",
    "plot_pareto",
    "plot_segments",
    "plot_shift",
    "plot_ttft",
    "save_fidelity_plots",
    "save_plots",
]

_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")
_SIZE = (9.0, 4.2)
_MOST_CELLS = 24  # columns of a heat map that leave room for numbers
_DARK = 0.6  # shares above this are bright in cividis
_LEAST_KLD = 1e-16  # nats; what is less, 0 too, is drawn there
_SWEEP = "shift-"  # edits that shift by a chosen number of tokens


def plot_hit_rate(rows: pd.DataFrame) -> Figure:
    """Share of each prompt that was reused, strategies by requests."""
    share = rows.assign(
        share=rows.reused_tokens / rows.prompt_tokens, name=contender_names(rows)
    ).pivot_table(
        index="name", columns=["session", "request"], values="share", sort=False
    )
    figure, axes = _axes(height=1.6 + 0.32 * len(share))
    axes.grid(visible=False)
    image = axes.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_yticks(range(len(share)), list(share.index))
    _mark_requests(axes, share.columns.to_frame(index=False))
    if share.shape[1] <= _MOST_CELLS:
        for (row, column), value in np.ndenumerate(share):
            color = "black" if value > _DARK else "white"
            text = f"{value:.0%}".removesuffix("%")
            axes.text(column, row, text, ha="center", va="center", size=7, color=color)
    figure.colorbar(image, format=PercentFormatter(1.0), label="reused share of prompt")
    return figure


def plot_ttft(rows: pd.DataFrame) -> Figure:
    """Seconds to the first token, request by request; empty when simulated."""
    timed = rows.dropna(subset=["ttft_s"])
    figure, axes = _lines(timed, "ttft_s", "time to first token [s, log scale]")
    axes.set_yscale("log")
    return figure


def plot_memory(rows: pd.DataFrame) -> Figure:
    """Bytes of keys and values held after each request."""
    mib = rows.assign(mib=rows.stored_bytes / 2**20)
    figure, axes = _lines(mib, "mib", "stored keys and values [MiB]")
    axes.set_ylim(bottom=0)
    return figure


def plot_segments(segments: pd.DataFrame) -> Figure:
    """Where the tokens of each prompt came from, a bar per request.

    Args:
        segments: from :func:`mlxlab.count_segments`.
    """
    table = segments.pivot_table(
        index=["session", "request"],
        columns="role",
        values="tokens",
        aggfunc="sum",
        fill_value=0,
        sort=False,
    )
    roles = [str(role) for role in Role if str(role) in table.columns]
    figure, axes = _axes(height=1.4 + 0.26 * len(table))
    left = np.zeros(len(table))
    for role, color in zip(roles, _colors(len(roles)), strict=True):
        axes.barh(range(len(table)), table[role], left=left, color=color, label=role)
        left += table[role].to_numpy()
    axes.set_yticks(range(len(table)), _labels(table.index.to_frame()))
    axes.invert_yaxis()
    axes.set_xlabel("prompt tokens")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def plot_pareto(found: Fidelity) -> Figure:
    """What is won against what it costs, a point per contender.

    Across: the share of tokens lost to exact reuse that is restored after all; up: how
    far the predictions of the answers diverge, in the median and at the worst, which
    makes an answer wrong. Lines are the noise floor and the ruler.
    """
    summary = found.summary()
    figure = Figure(figsize=(_SIZE[0], 1.3 * _SIZE[1]), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    columns = {"kld_median": "median", "kld_999": "99.9 % quantile"}
    for axes, (column, title) in zip(panels, columns.items(), strict=True):
        for name, style in _contender_styles(found).items():
            point = style | {"linestyle": "", "markersize": 8}
            label = name if axes is panels[0] else None
            kld = max(summary[column][name], _LEAST_KLD)
            axes.plot(summary.recovered[name], kld, label=label, **point)
        _dress(axes)
        _mark_yardsticks(axes, found, column, step=0.19)
        axes.set_yscale("log")
        axes.set_title(title, size=9)
        axes.set_xlabel("recovered of what exact reuse loses")
    panels[0].set_xlim(-0.04, 1.04)
    panels[0].xaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("KL divergence [nats, log scale]")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    return figure


def plot_shift(found: Fidelity) -> Figure:
    """Divergence and agreement over the distance that keys were moved by.

    Drawn from the edits ``shift-16``, ``shift-32`` and so on, and from the requests
    behind them in which something was moved.
    """
    figure = Figure(figsize=(_SIZE[0], 1.8 * _SIZE[1]), layout="constrained")
    kld, top = figure.subplots(2, sharex=True)
    swept = _swept(found)
    for name, style in _contender_styles(found).items():
        own = swept[swept.contender == name].sort_values("distance")
        if len(own):
            kld.plot(own.distance, own.kld_median, label=name, **style)
            top.plot(own.distance, own.same_top, **style)
    for axes, column in ((kld, "kld_median"), (top, "same_top")):
        _dress(axes)
        _mark_yardsticks(axes, found, column)
    kld.set_yscale("log")
    kld.set_ylabel("median KL divergence [nats, log scale]")
    top.yaxis.set_major_formatter(PercentFormatter(1.0))
    top.set_ylabel("same top token")
    top.set_xscale("log", base=2)
    top.xaxis.set_major_formatter("{x:,.0f}")
    top.set_xlabel("distance moved [tokens, log scale]")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    return figure


def save_plots(rows: pd.DataFrame, segments: pd.DataFrame, folder: Path) -> list[Path]:
    """Write every plot that has data as PNG into ``folder``; returns the files.

    Raises:
        MlxlabError: a file cannot be written.
    """
    figures = {
        "hit_rate": plot_hit_rate(rows),
        "segments": plot_segments(segments),
        "memory": plot_memory(rows),
    }
    if rows.ttft_s.notna().any():
        figures["ttft"] = plot_ttft(rows)
    return [_save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def save_fidelity_plots(found: Fidelity, folder: Path) -> list[Path]:
    """Write every plot of ``found`` that has data as PNG; returns the files.

    Raises:
        MlxlabError: a file cannot be written.
    """
    figures = {}
    if found.requests.lost_tokens.any():
        figures["pareto"] = plot_pareto(found)
    if len(_swept(found)):
        figures["shift"] = plot_shift(found)
    return [_save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _swept(found: Fidelity) -> pd.DataFrame:
    """Contender, median distance, median divergence and agreement, by shift edit."""
    requests = found.requests
    moved = requests[requests.edit.str.startswith(_SWEEP) & (requests["shift"] > 0)]
    positions = found.positions.join(moved, on="row", how="inner")
    groups = positions.groupby(["edit", "contender"], as_index=False, sort=False)
    swept = groups.agg(
        distance=("shift", "median"),
        kld_median=("kld", "median"),
        same_top=("same_top", "mean"),
    )
    return swept.assign(kld_median=swept.kld_median.clip(lower=_LEAST_KLD))


def _contender_styles(found: Fidelity) -> dict[str, dict[str, Any]]:
    """The same in every figure of ``found``."""
    reusing = found.requests.kind.isin(["exact", "approximate"])
    names = found.requests.contender[reusing].unique()
    return dict(zip(names, _styles(len(names)), strict=True))


def _mark_yardsticks(
    axes: Axes, found: Fidelity, column: str, step: float = 0.13
) -> None:
    """A line for the noise floor and for each bit width, labels ``step`` apart."""
    rows = found.requests[found.requests.kind.isin(["floor", "ruler"])]
    levels = found.summary()[column].reindex(rows.contender.unique())
    for i, (name, level) in enumerate(levels.clip(lower=_LEAST_KLD).items()):
        axes.axhline(level, color="0.45", linewidth=1, linestyle=":", zorder=1)
        axes.annotate(
            str(name),
            (0.01 + step * i, level),  # lines may be close: each label has its place
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            color="0.35",
            size=7,
        )


def _save(figure: Figure, path: Path) -> Path:
    try:
        with replaced(path) as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise MlxlabError(f"{path}: {error.strerror}; give a folder") from None
    return path


def _lines(frame: pd.DataFrame, column: str, label: str) -> tuple[Figure, Axes]:
    """A line per strategy over the requests in order, sessions set apart."""
    figure, axes = _axes(height=_SIZE[1])
    order = frame[["session", "request"]].drop_duplicates().reset_index(drop=True)
    position = {tuple(key): i for i, key in enumerate(order.itertuples(index=False))}
    groups = list(frame.groupby(contender_names(frame), sort=False))
    for style, (name, rows) in zip(_styles(len(groups)), groups, strict=True):
        keys = zip(rows.session, rows.request, strict=True)
        axes.plot([position[k] for k in keys], rows[column], label=name, **style)
    _mark_requests(axes, order)
    axes.set_ylabel(label)
    figure.legend(loc="outside right upper", frameon=False)
    return figure, axes


def _mark_requests(axes: Axes, order: pd.DataFrame) -> None:
    """Label the requests along x and set sessions, not their agents, apart."""
    session = order.session.str.partition("/")[0]
    for start in order.index[session != session.shift()][1:]:
        axes.axvline(start - 0.5, color="0.6", linewidth=0.8)
    axes.set_xticks(range(len(order)), _labels(order), rotation=60, ha="right")


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _colors(n: int) -> list[str]:
    """Colours that stay apart for colour-blind readers."""
    cycle = mpl.color_sequences["petroff10"]
    return [mpl.colors.to_hex(cycle[i % len(cycle)]) for i in range(n)]


def _styles(n: int) -> Iterator[dict[str, Any]]:
    for i, color in enumerate(_colors(n)):
        yield {
            "color": color,
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _DASHES[i % len(_DASHES)],
            "linewidth": 1.4,
            "markersize": 5,
            "alpha": 0.9,
        }


def _labels(order: pd.DataFrame) -> list[str]:
    """Short names: sessions numbered, their sub-agents lettered, as in ``1b #7``."""
    names: dict[str, str] = {}
    agents: dict[str, int] = {}
    for session in order.session.unique():
        main, _, agent = session.partition("/")
        number = agents.setdefault(main, 0)
        agents[main] += bool(agent)
        place = list(agents).index(main) + 1
        names[session] = (
            f"{place}{ascii_lowercase[number % 26]}" if agent else f"{place}"
        )
    return [
        f"{names[s]} #{r}" for s, r in zip(order.session, order.request, strict=True)
    ]
