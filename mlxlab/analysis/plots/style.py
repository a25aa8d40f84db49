"""Colours, markers and hatches: one for each role and strategy, in every plot.

Colours are those of Okabe and Ito, which colour-blind readers tell apart ("Color
Universal Design", 2008). Hatches, markers and dashes tell the same things apart
without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from mlxlab.prompt import Role

__all__ = [
    "ACCENT",
    "INK",
    "QUIET",
    "RAMP",
    "role_style",
    "strategy_styles",
]

#: Text, axes and lines; :class:`Picture` puts the page's own text colour in its place.
INK: Final = "#232529"

#: Opacity of ink that must not distract: grids, notes, bounds.
QUIET = 0.62

_ORANGE, _SKY, _GREEN, _YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
_BLUE, _VERMILLION, _PURPLE, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#8A8D91"

#: What a reader must not miss.
ACCENT = _VERMILLION

#: Colours for lines that stand for sizes, in order.
RAMP = (_SKY, _GREEN, _ORANGE, _PURPLE, _BLUE, _VERMILLION)

_ROLES: Mapping[Role, tuple[str, str]] = {
    Role.ATTRIBUTION: (_VERMILLION, "xxxx"),
    Role.SYSTEM: (_BLUE, ""),
    Role.TOOLS: (_GREEN, "////"),
    Role.INLINE_SYSTEM: (_SKY, "\\\\\\\\"),
    Role.USER: (_ORANGE, ""),
    Role.TOOL_RESULT: (_PURPLE, "||||"),
    Role.ASSISTANT: (_YELLOW, "----"),
    Role.ANSWER: (_YELLOW, "----"),
    Role.TEMPLATE: (_GREY, ""),
    Role.GENERATION: (_GREY, ""),
    Role.UNKNOWN: (_GREY, "++++"),
}

_STRATEGIES: Mapping[str, tuple[str, str]] = {
    "none": (_GREY, "x"),
    "prefix": (_ORANGE, "o"),
    "static-prefix": (_SKY, "s"),
    "block-hash": (_GREEN, "^"),
    "paged": (_BLUE, "D"),
    "mlx-lm": (_PURPLE, "v"),
    "suffix": (_VERMILLION, "P"),
    "suffix-naive": (_VERMILLION, "X"),
    "segmented": (_YELLOW, "p"),
    "segmented-naive": (_YELLOW, "*"),
}
_OTHERS = ((_GREY, "<"), (_PURPLE, ">"), (_GREEN, "h"), (_SKY, "d"))
_DASHES = ("-", "--", "-.", ":")
_VARIANTS = tuple(
    zip(
        (_ORANGE, _GREEN, _VERMILLION, _PURPLE, _SKY, _GREY, _YELLOW),
        ("o", "^", "P", "v", "s", "<", "h"),
        strict=True,
    )
)


def role_style(role: str) -> dict[str, Any]:
    """Return colour and hatch of a role's bars."""
    color, hatch = _ROLES.get(Role(role), (_GREY, ""))
    return {"facecolor": color, "hatch": hatch, "edgecolor": INK}


def strategy_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return how to draw a line for each strategy.

    Args:
        names: ``name[:parameters][@rules]``. Lines of one strategy share colour and
            marker and differ in dashes. Where all are of one strategy, colours and
            markers tell its variants apart.
    """
    bases = {name: name.partition("@")[0].partition(":")[0] for name in names}
    alone = len(set(bases.values())) == 1
    styles: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for name, base in bases.items():
        number = seen[base] = seen.get(base, -1) + 1
        others = [other for other in seen if other not in _STRATEGIES]
        color, marker = (
            _STRATEGIES.get(base) or _OTHERS[others.index(base) % len(_OTHERS)]
        )
        if alone and number:
            color, marker = _VARIANTS[(number - 1) % len(_VARIANTS)]
        styles[name] = {
            "color": color,
            "marker": marker,
            "linestyle": _DASHES[number % len(_DASHES)],
            "linewidth": 1.5,
            "markersize": 5.5,
            "markeredgecolor": INK,
            "markeredgewidth": 0.4,
        }
    return styles
