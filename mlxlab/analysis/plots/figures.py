"""What all pictures have in common: axes, and labels of requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.plots.style import INK, QUIET
from mlxlab.sizes import format_size

__all__ = [
    "NARROW",
    "SIZE",
    "add_legend",
    "break_name",
    "draw_blocks",
    "dress",
    "in_seconds",
    "label_bar",
    "log_seconds",
    "make_axes",
    "mark_requests",
    "over_memory",
    "request_labels",
    "set_title",
]

Floats: TypeAlias = NDArray[np.floating[Any]]

#: Inches.
SIZE = (9.0, 4.2)

#: Inches that a telephone can show at full size.
NARROW = 3.6

#: Height of a block, in rows.
_BLOCK = 0.78

#: Slanted labels beside each other that do not touch in a picture of the usual width.
_MOST_LABELS = 40


#: Characters of a line of a strategy's name.
_LINE = 30


def make_axes(height: float, width: float = SIZE[0]) -> tuple[Picture, Axes]:
    """Return an empty picture of this height and width in inches."""
    picture = Picture(figsize=(width, height), layout="constrained")
    axes = picture.add_subplot()
    dress(axes)
    return picture, axes


def dress(axes: Axes) -> None:
    """Draw axes in ink, without frame."""
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(INK)
    axes.grid(axis="both", color=INK, alpha=0.14, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9)


def add_legend(picture: Picture, **settings: object) -> None:
    """Put the legend beside the axes."""
    place = {"loc": "outside right upper", "frameon": False, "fontsize": 8}
    legend = picture.legend(**{**place, "labelcolor": INK, **settings})
    for text in legend.get_texts():
        text.set_color(INK)


def set_title(axes: Axes, text: str) -> None:
    """Write a title above the left edge."""
    axes.set_title(text, loc="left", size=9, color=INK)


def label_bar(
    axes: Axes, end: tuple[float, float], text: str, alpha: float = 1.0
) -> None:
    """Write a text behind the end of a horizontal bar."""
    axes.annotate(
        text,
        end,
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        size=8,
        color=INK,
        alpha=alpha,
    )


def draw_blocks(
    axes: Axes, places: Floats, starts: Floats, stops: Floats, **style: Any
) -> None:
    """Draw bars from ``starts`` to ``stops`` in rows ``places`` as one shape.

    One shape for thousands of blocks keeps an SVG small.

    Args:
        axes: what to draw on.
        places: rows, shape ``[n]``.
        starts: left edges, shape ``[n]``.
        stops: right edges, shape ``[n]``.
        style: of a patch.
    """
    top, bottom = places - _BLOCK / 2, places + _BLOCK / 2
    corners = [(starts, top), (stops, top), (stops, bottom), (starts, bottom)]
    vertices = np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)
    closed = np.concatenate([vertices, vertices[:, :1]], axis=1).reshape(-1, 2)
    codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY] * len(places)
    axes.add_patch(PathPatch(Path(closed, codes), **style))


def break_name(name: str) -> str:
    """Return a long name of a strategy as lines, broken between its parameters."""
    lines = re.findall(rf".{{1,{_LINE}}}(?:[,+:]|$)|.{{1,{_LINE}}}", name)
    return "\n".join(lines)


def in_seconds(value: float, _: object = None) -> str:
    """Write a time with its unit: ``0.25 s``, ``12 s``."""
    return f"{value:.3g} s"


def log_seconds(axes: Axes) -> None:
    """Make y a logarithmic axis of seconds, labelled as seconds."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(in_seconds))
    axes.yaxis.set_minor_formatter(NullFormatter())


def request_labels(order: pd.DataFrame) -> list[str]:
    """Return short names of requests.

    Sessions are numbered and their sub-agents lettered: ``1b #7`` is request 7, of the
    second agent of the first session.
    """
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


def mark_requests(axes: Axes, order: pd.DataFrame, middle: float = 0.0) -> None:
    """Label the requests along x and draw a line between sessions.

    Of many requests only some are labelled.

    Args:
        axes: what to draw on.
        order: requests from left to right.
        middle: x of the first request.
    """
    session = order.session.str.partition("/")[0]
    for start in order.index[session != session.shift()][1:]:
        axes.axvline(start + middle - 0.5, color=INK, alpha=QUIET, linewidth=0.8)
    shown = slice(None, None, -(-len(order) // _MOST_LABELS))
    places = np.arange(len(order)) + middle
    labels = request_labels(order)
    axes.set_xticks(places[shown], labels[shown], rotation=60, ha="right")


def over_memory(axes: Axes, sizes: Sequence[int]) -> None:
    """Let the horizontal axis show memory, with a tick for each size in bytes."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [format_size(int(size)) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("memory for keys and values (log scale)")
