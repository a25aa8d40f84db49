"""Draw README's picture, docs/strip.svg: prompts before and after, as strips."""

from __future__ import annotations

import re
from pathlib import Path

import mlxlab as ml
from mlxlab.analysis.plots import plot_strip
from mlxlab.analysis.plots.picture import COLOUR_SCHEMES

#: One slot without rules, as in most local servers, and the usual choice.
STRATEGIES = ("prefix@none", "paged")

_SIZE = re.compile(r' (?:width|height)="[^"]*"')
_VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def stack(pictures: list[str]) -> str:
    """Return one SVG file with the pictures below each other.

    Args:
        pictures: SVG elements whose view boxes begin at 0, 0.
    """
    top = width = 0.0
    parts = []
    for picture in pictures:
        root, bracket, body = picture.partition(">")
        view = _VIEW.search(root)
        if view is None:
            raise ValueError("an SVG without a view box that begins at 0, 0")
        # A size in points would not fit the view box around it.
        size = f'y="{top:g}" width="{view[1]}" height="{view[2]}"'
        root = _SIZE.sub("", root).replace("<svg", f"<svg {size}", 1)
        parts.append(root + bracket + body)
        width, top = max(width, float(view[1])), top + float(view[2])
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width:g} {top:g}" width="{width:g}pt" height="{top:g}pt">'
    )
    return "".join([head, COLOUR_SCHEMES, *parts, "</svg>\n"])


def main() -> None:
    """Write the picture beside this script."""
    strips = [
        plot_strip(ml.misses("sessions", name, progress=False)).to_svg()
        for name in STRATEGIES
    ]
    Path(__file__).with_name("strip.svg").write_text(stack(strips))


if __name__ == "__main__":
    main()
