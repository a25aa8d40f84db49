"""Figures of what was computed although it was known, and why."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mlxlab.analysis.misses.causes import ABSENT, NO_REMEDY
from mlxlab.analysis.plots.figures import (
    NARROW,
    SIZE,
    add_legend,
    draw_blocks,
    in_seconds,
    make_axes,
    request_labels,
    set_title,
)
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import ACCENT, INK, QUIET, role_style
from mlxlab.prompt import Role

if TYPE_CHECKING:
    from mlxlab.analysis.misses.result import Misses

__all__ = ["plot_causes", "plot_strip", "save_misses_plots"]

_PALE = 0.34
_ROW = 0.27  # inches
_NARROW_ROW = 0.19  # inches: each narrow strip takes two rows, one for its text
_ABOVE = 0.82  # rows from a narrow strip to its text
_INDENT = 0.15  # share of the width that the name of a request takes there
_KEY = ["session", "request", "cause"]
_WORTH = 0.005  # share of a prompt that is worth a mark
_LEAST = 3 / 96  # inches: a break is never drawn narrower than three pixels
_TEXT: dict[str, Any] = {"va": "center", "size": 8, "color": INK}
_CAPTION = 100  # characters of a line
#: Prompts end in a few tokens of these, which are not worth a legend entry.
_AS_TEMPLATE = str(Role.GENERATION)


def plot_strip(misses: Misses, *, narrow: bool = False) -> Picture:
    """Draw each prompt as a strip of its blocks, one row per request.

    Reused tokens are pale, computed ones in full colour. A framed mark shows the block
    that broke the prompt where most of the tokens behind it could have been saved. A
    text on each row gives the computed tokens and their main cause.

    Args:
        misses: the requests and their causes.
        narrow: whether to draw for a telephone: the texts are above their strips.
    """
    requests = misses.requests
    pitch = 2 if narrow else 1
    row = pitch * (_NARROW_ROW if narrow else _ROW)
    figure, axes = make_axes(1.7 + row * len(requests), NARROW if narrow else SIZE[0])
    places = {
        key: pitch * place
        for place, key in enumerate(
            zip(requests.session, requests.request, strict=True)
        )
    }
    rows = _merged(misses.parts)
    rows["place"] = [places[k] for k in zip(rows.session, rows.request, strict=True)]
    for (role, computed), own in rows.groupby(["role", "computed"]):
        draw_blocks(
            axes,
            *(own[column].to_numpy(float) for column in ("place", "start", "stop")),
            alpha=1 if computed else _PALE,
            linewidth=0,
            gid="blocks",
            **role_style(str(role)),
        )
    (_arrange_narrow if narrow else _arrange)(axes, requests)
    roles = [r for r in Role if str(r) in set(rows.role)]
    _explain_colours(figure, roles, columns=2 if narrow else 5)
    (_write_above if narrow else _write_beside)(axes, misses, places)
    figure.draw_without_rendering()  # settles the scale, which the marks' width needs
    _mark_breaks(figure, axes, misses, places)
    return figure


def _caption(misses: Misses) -> str:
    """Return the main number, below what was missing or assumed."""
    assumed = [wrap(line.partition(";")[0], _CAPTION) for line in misses.assumed]
    return "\n".join([*chain(*assumed), misses.title.split("\n")[-1]])


def plot_causes(misses: Misses) -> Picture:
    """Draw one bar per cause, in seconds if they are known, and name each remedy."""
    summary = misses.summary()
    unit = "seconds" if "seconds" in summary else "tokens"
    figure, axes = make_axes(height=1.3 + 0.36 * len(summary))
    lost = ~summary.remedy.str.startswith(NO_REMEDY)
    is_known = not summary.remedy.eq(ABSENT).any()
    for saved, style in _SAVABLE.items():
        if not (saved or is_known):
            style = {**style, "label": "not known, most of the prompt is absent"}
        own = summary[unit].where(lost == saved, 0)
        axes.barh(range(len(summary)), own, height=0.66, linewidth=0, **style)
    for place, row in enumerate(summary.to_dict("records")):
        shown = f"{row['share']:.1%} of the computed tokens; {row['remedy']}"
        axes.annotate(
            shown,
            (row[unit], place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            size=8,
            color=INK,
        )
    axes.set_yticks(range(len(summary)), list(summary.cause))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.75 * summary[unit].max())
    if unit == "tokens":
        axes.xaxis.set_major_formatter("{x:,.0f}")
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(in_seconds))
    axes.set_xlabel("computed tokens" if unit == "tokens" else "prefill time")
    set_title(axes, _caption(misses))
    add_legend(figure, loc="outside lower center", ncols=2)
    return figure


#: Bars of tokens that a change of settings would have saved, and of the others.
_SAVABLE: dict[bool, dict[str, Any]] = {
    True: {"facecolor": ACCENT, "label": "could have been saved"},
    False: {
        "facecolor": "#8A8D91",
        "hatch": "////",
        "edgecolor": INK,
        "label": "had to be computed",
    },
}


def save_misses_plots(misses: Misses, folder: Path) -> list[Path]:
    """Write both pictures as SVG into ``folder``.

    Returns:
        The files.

    Raises:
        MlxlabError: a file cannot be written.
    """
    figures = {"strip": plot_strip(misses), "causes": plot_causes(misses)}
    return [figure.save(folder / f"{name}.svg") for name, figure in figures.items()]


def _merged(parts: pd.DataFrame) -> pd.DataFrame:
    """Join neighbours of one role that were both reused or both computed."""
    role = parts.role.replace(_AS_TEMPLATE, str(Role.TEMPLATE))
    parts = parts.assign(role=role, computed=parts.cause != "")
    keys = ["session", "request", "role", "computed"]
    new = (parts[keys] != parts[keys].shift()).any(axis=1)
    ends = {"start": ("start", "first"), "stop": ("stop", "last")}
    first = {key: (key, "first") for key in keys}
    return parts.groupby(new.cumsum()).agg(**first, **ends)


def _mark_breaks(
    figure: Picture, axes: Axes, misses: Misses, places: dict[tuple[str, int], int]
) -> None:
    """Frame the first computed block of each prompt that could have been saved."""
    computed = misses.parts[misses.parts.cause != ""]
    first = computed.groupby(["session", "request"]).first()
    inches = axes.get_window_extent().width / figure.dpi
    least = _LEAST * (axes.get_xlim()[1] - axes.get_xlim()[0]) / inches
    for row in misses.requests.to_dict("records"):
        key = (row["session"], row["request"])
        if _is_lost(_main_causes(misses.causes, row), row):
            start, stop = first.start[key], first.stop[key]
            draw_blocks(
                axes,
                *(
                    np.array([x])
                    for x in (places[key], start, max(stop, start + least))
                ),
                facecolor="none",
                edgecolor=INK,
                linewidth=1.6,
                zorder=3,
                gid="break",
            )
            axes.plot(start, places[key], "<", color=INK, ms=4.5, zorder=3)


def _write_beside(
    axes: Axes, misses: Misses, places: dict[tuple[str, int], int]
) -> None:
    """Write computed tokens and their main cause behind each strip."""
    most = misses.requests.prompt_tokens.max()

    def write(place: int, tokens: str, cause: str, **style: Any) -> None:
        axes.text(1.085 * most, place, tokens, ha="right", **_TEXT, **style)
        axes.text(1.1 * most, place, cause, **_TEXT, **style)

    set_title(axes, _caption(misses))
    write(-1, "computed", "main cause", alpha=QUIET)
    for key, tokens, cause, style in _reasons(misses):
        write(places[key], tokens, cause, **style)


def _write_above(
    axes: Axes, misses: Misses, places: dict[tuple[str, int], int]
) -> None:
    """Write name, computed tokens and their main cause above each strip."""
    names = request_labels(misses.requests)
    most = misses.requests.prompt_tokens.max()
    for name, (key, tokens, cause, style) in zip(names, _reasons(misses), strict=True):
        text, above = f"{tokens} computed: {cause}", places[key] - _ABOVE
        axes.text(0, above, name, alpha=QUIET, **_TEXT)
        axes.text(_INDENT * most, above, text, **_TEXT, **style)


def _reasons(
    misses: Misses,
) -> Iterator[tuple[tuple[str, int], str, str, dict[str, Any]]]:
    """Yield each request's key, computed tokens, main cause, and style of text."""
    for row in misses.requests.to_dict("records"):
        own = _main_causes(misses.causes, row)
        lost = _is_lost(own, row)
        yield (
            (row["session"], row["request"]),
            f"{row['missed_tokens']:,}",
            _reason(own),
            {"alpha": 1 if lost else QUIET, "weight": "bold" if lost else "normal"},
        )


def _is_lost(own: pd.DataFrame, row: dict[Hashable, Any]) -> bool:
    """Whether a change of settings would have saved a part worth a mark."""
    savable = own[~own.remedy.str.startswith(NO_REMEDY)].tokens.sum()
    return bool(savable > _WORTH * row["prompt_tokens"])


def _main_causes(causes: pd.DataFrame, row: dict[Hashable, Any]) -> pd.DataFrame:
    """The rows of a request's main cause, the costliest first."""
    same = (causes[_KEY] == pd.Series(row)[_KEY]).all(axis=1)
    return causes[same].sort_values("tokens", ascending=False)


def _reason(own: pd.DataFrame) -> str:
    """A cause, and the request behind it if that evicted the tokens."""
    evictor = re.match(r"request (\d+)", own.evicted_by.iloc[0])
    cause = str(own.cause.iloc[0])
    return f"{cause} by #{evictor[1]}" if evictor else cause


def _arrange(axes: Axes, requests: pd.DataFrame) -> None:
    axes.set_yticks(range(len(requests)), request_labels(requests))
    axes.set_ylim(len(requests) - 0.4, -1.4)
    axes.set_xlim(0, 1.36 * requests.prompt_tokens.max())
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    ticks = [t for t in axes.get_xticks() if t <= requests.prompt_tokens.max()]
    axes.set_xticks(ticks)
    axes.set_xlabel(
        "prompt tokens (2 #7: request 7, of the second session; 2b: its second agent)"
    )
    session = requests.session.str.partition("/")[0].reset_index(drop=True)
    for start in session.index[session != session.shift()][1:]:
        axes.axhline(start - 0.5, color=INK, alpha=QUIET, linewidth=0.8)


def _arrange_narrow(axes: Axes, requests: pd.DataFrame) -> None:
    axes.set_ylim(2 * len(requests) - 1.4, -1.7)
    axes.set_xlim(0, requests.prompt_tokens.max())
    axes.grid(visible=False)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("prompt tokens")


def _explain_colours(figure: Picture, roles: list[Role], columns: int) -> None:
    handles: list[Artist] = [
        Patch(**role_style(r), linewidth=0, label=str(r)) for r in roles
    ]
    handles += [
        Patch(facecolor=INK, label="full colour: computed"),
        Patch(facecolor=INK, alpha=_PALE, label="pale: reused"),
        Line2D([], [], color=INK, marker="<", ls="", label="broke the prompt"),
    ]
    add_legend(figure, handles=handles, loc="outside lower center", ncols=columns)
