"""What all figures have in common: axes, colours, labels and files.

Figures are made without pyplot, which keeps global state and is not safe on Jupyter's
callback threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlxlab.errors import MlxlabError
from mlxlab.files import replaced

__all__ = [
    "SIZE",
    "colors",
    "dress",
    "make_axes",
    "mark_requests",
    "request_labels",
    "save",
    "styles",
]

#: Inches.
SIZE = (9.0, 4.2)
_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")


def make_axes(height: float) -> tuple[Figure, Axes]:
    """An empty figure of the usual width, ``height`` inches high."""
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    dress(axes)
    return figure, axes


def dress(axes: Axes) -> None:
    """Take away what distracts."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def colors(n: int) -> list[str]:
    """Colours that stay apart for colour-blind readers."""
    cycle = mpl.color_sequences["petroff10"]
    return [mpl.colors.to_hex(cycle[i % len(cycle)]) for i in range(n)]


def styles(n: int) -> Iterator[dict[str, Any]]:
    """How to draw ``n`` lines that stay apart in print, too."""
    for i, color in enumerate(colors(n)):
        yield {
            "color": color,
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _DASHES[i % len(_DASHES)],
            "linewidth": 1.4,
            "markersize": 5,
            "alpha": 0.9,
        }


def request_labels(order: pd.DataFrame) -> list[str]:
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


def mark_requests(axes: Axes, order: pd.DataFrame) -> None:
    """Label the requests along x and set sessions, not their agents, apart."""
    session = order.session.str.partition("/")[0]
    for start in order.index[session != session.shift()][1:]:
        axes.axvline(start - 0.5, color="0.6", linewidth=0.8)
    axes.set_xticks(range(len(order)), request_labels(order), rotation=60, ha="right")


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all.

    Raises:
        MlxlabError: the file cannot be written.
    """
    try:
        with replaced(path) as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise MlxlabError(f"{path}: {error.strerror}; give a folder") from None
    return path
