"""Figures of what was computed although it was known, and why."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mlxlab.analysis.misses.causes import NOTHING
from mlxlab.analysis.misses.result import Misses
from mlxlab.analysis.plots.figures import colors, make_axes, request_labels, save
from mlxlab.prompt import Role

__all__ = ["plot_causes", "plot_strip", "save_misses_plots"]

_PALE = 0.25
_LOST = "#b00020"
_NEEDED = "0.5"
_ROW = 0.26  # inches
_KEY = ["session", "request", "cause"]
_WORTH = 0.005  # share of a prompt that is worth a mark
#: What the template adds is not worth a colour.
_PLAIN = {Role.TEMPLATE: "0.6", Role.UNKNOWN: "0.4"}
_COLOURED = [
    role for role in Role if role not in {*_PLAIN, Role.GENERATION, Role.ANSWER}
]


def plot_strip(misses: Misses) -> Figure:
    """Each prompt as a strip of its blocks, request below request.

    Pale is what was reused, full colour what was computed. A mark shows where reuse
    ends although something would have saved most of what follows; behind the strip
    stands how much was computed, and what for.
    """
    requests = misses.requests
    figure, axes = make_axes(height=1.7 + _ROW * len(requests))
    places = {
        key: place
        for place, key in enumerate(
            zip(requests.session, requests.request, strict=True)
        )
    }
    rows = _merged(misses.parts)
    rows["place"] = [places[k] for k in zip(rows.session, rows.request, strict=True)]
    palette = _palette()
    for (role, computed), own in rows.groupby(["role", "computed"]):
        axes.barh(
            own.place,
            own.stop - own.start,
            left=own.start,
            height=0.78,
            color=palette[str(role)],
            alpha=1 if computed else _PALE,
            linewidth=0,
        )
    _mark_breaks(axes, misses, places)
    _arrange(axes, requests)
    _explain_colours(figure, [r for r in palette if r in set(rows.role)], palette)
    axes.set_title(misses.title.split("\n")[-1], size=9, loc="left")
    return figure


def plot_causes(misses: Misses) -> Figure:
    """A bar per cause, in seconds if they are known, and what would have helped."""
    summary = misses.summary()
    unit = "seconds" if "seconds" in summary else "tokens"
    figure, axes = make_axes(height=1.3 + 0.36 * len(summary))
    lost = ~summary.remedy.str.startswith(NOTHING)
    axes.barh(
        range(len(summary)),
        summary[unit],
        height=0.66,
        color=[_LOST if saved else "0.75" for saved in lost],
    )
    for place, row in enumerate(summary.to_dict("records")):
        shown = f"{row['share']:.1%} of the computed tokens; {row['remedy']}"
        axes.annotate(
            shown,
            (row[unit], place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            size=8,
            color="0.2",
        )
    axes.set_yticks(range(len(summary)), list(summary.cause))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.75 * summary[unit].max())
    axes.xaxis.set_major_formatter("{x:,.0f}" if unit == "tokens" else "{x:g}")
    axes.set_xlabel(f"{unit} computed")
    axes.set_title(misses.title.split("\n")[-1], size=9, loc="left")
    handles = [
        Patch(color=_LOST, label="could have been saved"),
        Patch(color="0.75", label="had to be computed"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return figure


def save_misses_plots(misses: Misses, folder: Path) -> list[Path]:
    """Write both plots as PNG into ``folder``; returns the files.

    Raises:
        MlxlabError: a file cannot be written.
    """
    figures = {"strip": plot_strip(misses), "causes": plot_causes(misses)}
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _merged(parts: pd.DataFrame) -> pd.DataFrame:
    """Neighbours of one role and fate as one: thousands of bars take long to draw."""
    role = parts.role.replace(str(Role.GENERATION), str(Role.TEMPLATE))
    parts = parts.assign(role=role, computed=parts.cause != "")
    keys = ["session", "request", "role", "computed"]
    new = (parts[keys] != parts[keys].shift()).any(axis=1)
    ends = {"start": ("start", "first"), "stop": ("stop", "last")}
    first = {key: (key, "first") for key in keys}
    return parts.groupby(new.cumsum()).agg(**first, **ends)


def _palette() -> dict[str, str]:
    shades = colors(len(_COLOURED))
    found = {str(role): shade for role, shade in zip(_COLOURED, shades, strict=True)}
    return found | {str(role): shade for role, shade in _PLAIN.items()}


def _mark_breaks(
    axes: Axes, misses: Misses, places: dict[tuple[str, int], int]
) -> None:
    right = 1.01 * misses.requests.prompt_tokens.max()
    text: dict[str, Any] = {"va": "center", "size": 7.5, "family": "monospace"}
    axes.text(right, -1, "computed, mostly for", color=_NEEDED, **text)
    computed = misses.parts[misses.parts.cause != ""]
    first = computed.groupby(["session", "request"]).start.min()
    for row in misses.requests.to_dict("records"):
        key = (row["session"], row["request"])
        own = _main_causes(misses.causes, row)
        savable = own[~own.remedy.str.startswith(NOTHING)].tokens.sum()
        lost = savable > _WORTH * row["prompt_tokens"]
        if lost:
            axes.plot(
                first[key], places[key] - 0.5, "v", color="black", clip_on=False, ms=5
            )
        axes.text(
            right,
            places[key],
            f"{row['missed_tokens']:>7,}  {_reason(own)}",
            color="black" if lost else _NEEDED,
            weight="bold" if lost else "normal",
            **text,
        )


def _main_causes(causes: pd.DataFrame, row: dict[Hashable, Any]) -> pd.DataFrame:
    """The rows of a request's main cause, the costliest first."""
    same = (causes[_KEY] == pd.Series(row)[_KEY]).all(axis=1)
    return causes[same].sort_values("tokens", ascending=False)


def _reason(own: pd.DataFrame) -> str:
    """A cause, and if that is somebody's commit, whose."""
    evictor = re.match(r"request (\d+)", own.evicted_by.iloc[0])
    cause = str(own.cause.iloc[0])
    return f"{cause} by #{evictor[1]}" if evictor else cause


def _arrange(axes: Axes, requests: pd.DataFrame) -> None:
    axes.set_yticks(range(len(requests)), request_labels(requests))
    axes.set_ylim(len(requests) - 0.4, -1.4)
    axes.set_xlim(0, 1.3 * requests.prompt_tokens.max())
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    ticks = [t for t in axes.get_xticks() if t <= requests.prompt_tokens.max()]
    axes.set_xticks(ticks)
    axes.set_xlabel(
        "prompt tokens (2 #7: request 7, of the second session; 2b: its second agent)",
        size=8,
    )
    session = requests.session.str.partition("/")[0].reset_index(drop=True)
    for start in session.index[session != session.shift()][1:]:
        axes.axhline(start - 0.5, color="0.6", linewidth=0.8)


def _explain_colours(figure: Figure, roles: list[str], palette: dict[str, str]) -> None:
    handles: list[Artist] = [Patch(color=palette[r], label=r) for r in roles]
    handles += [
        Patch(color="0.3", label="full colour: computed"),
        Patch(color="0.3", alpha=_PALE, label="pale: reused"),
        Line2D([], [], color="black", marker="v", ls="", label="reuse ends early"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
