"""Leaves out how many tokens are left."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.passages import Passages
from mlxlab.rendering.rules.registry import register

_COUNTS = re.compile(
    r"^(?:<total_tokens>[^<\n]{1,40} tokens left</total_tokens>"
    r"|Token usage: \d+/\d+; \d+ remaining)\n*",
    re.MULTILINE,
)


def _find_counts(text: str) -> Iterator[tuple[int, int]]:
    for match in _COUNTS.finditer(text):
        yield match.span()


register(
    Rule(
        name="drop-token-counts",
        summary="leave out reminders of the tokens left before the first answer",
        place="system text and the environment",
        reason="the counts follow model, window and what was used before",
        effect=Effect.LEFT_OUT,
        default=False,
        rank=80,
        apply=Passages(_find_counts, moved=False),
    )
)
