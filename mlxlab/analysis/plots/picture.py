"""A figure that displays itself: vector, transparent, legible in light and dark."""

from __future__ import annotations

import re
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from mlxlab.analysis.plots.style import INK
from mlxlab.errors import MlxlabError
from mlxlab.files import written

__all__ = ["COLOUR_SCHEMES", "Picture"]

#: The same figure gives the same file; text stays text.
_SVG: Any = {"svg.fonttype": "none"}

#: Ink of a file of its own, which takes no colour from a page.
COLOUR_SCHEMES = (
    "<style>svg{color:#1f2328}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
)
_DPI = 96
_METADATA = re.compile(r"\s*<metadata>.*</metadata>", re.DOTALL)


class Picture(Figure):
    """A matplotlib figure made without pyplot.

    pyplot keeps global state and is not safe on Jupyter's callback threads. Notebooks
    show a picture without ``%matplotlib inline``, in the text colour of their theme.
    """

    def to_svg(self, salt: str = "mlxlab") -> str:
        """Return the picture as an SVG element whose ink is ``currentColor``.

        Args:
            salt: decides the ids of shapes. A page that hides one of its pictures needs
                one salt each: a hatch that is looked up in a hidden picture is blank.
        """
        buffer = StringIO()
        with mpl.rc_context({**_SVG, "svg.hashsalt": salt}):
            self.savefig(
                buffer,
                format="svg",
                transparent=True,
                metadata={"Date": None, "Creator": None},
            )
        svg = buffer.getvalue()
        svg = _METADATA.sub("", svg[svg.index("<svg") :])
        return svg.replace(INK, "currentColor")

    def save(self, path: Path) -> Path:
        """Write a file, whole or not at all.

        Args:
            path: ends in ``.svg``, which follows the colour scheme of its reader, or
                in ``.png``.

        Returns:
            ``path``.

        Raises:
            MlxlabError: the file cannot be written, or has another suffix.
        """
        if path.suffix not in (".svg", ".png"):
            raise MlxlabError(f"{path}: give a file name that ends in .svg or .png")
        content = self._png() if path.suffix == ".png" else self._svg_file()
        try:
            with written(path) as file:
                file.write(content)
        except OSError as error:
            raise MlxlabError(f"{path}: {error.strerror}; give a folder") from None
        return path

    def _svg_file(self) -> bytes:
        head, bracket, body = self.to_svg().partition(">")
        return f"{head}{bracket}{COLOUR_SCHEMES}{body}".encode()

    def _png(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
        return buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """HTML for notebooks; a PNG on white for viewers that drop inline SVG."""
        style = 'style="max-width:100%;height:auto" role="img" '
        svg = self.to_svg().replace("<svg ", f"<svg {style}", 1)
        return {"text/html": svg, "image/png": self._png(), "text/plain": repr(self)}
