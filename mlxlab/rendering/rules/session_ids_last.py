"""Renders sections with a session's folder behind the tools."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.passages import Passages
from mlxlab.rendering.rules.registry import register

_ID = re.compile(r"/[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f-])")
_SECTION = re.compile(r"^(?=#{1,6} )", re.MULTILINE)
_PARAGRAPH = re.compile(r"(?<=\n\n)(?=\S)")


def _find_sections(text: str) -> Iterator[tuple[int, int]]:
    """Yield the sections that hold a path with a session id.

    The whole section is taken, because its other sentences refer to the path. Text
    without headings is taken by paragraphs.
    """
    if not _ID.search(text):
        return
    marks = _SECTION if _SECTION.search(text) else _PARAGRAPH
    starts = [match.start() for match in marks.finditer(text)]
    for start, stop in zip([0, *starts], [*starts, len(text)], strict=True):
        if _ID.search(text, start, stop):
            yield start, stop


register(
    Rule(
        name="session-ids-last",
        summary="render sections that name a folder of the session behind the tools",
        place="system text and the environment",
        reason="the session's id in a path differs between sessions",
        effect=Effect.MOVED,
        default=False,
        rank=70,
        apply=Passages(_find_sections, moved=True),
    )
)
