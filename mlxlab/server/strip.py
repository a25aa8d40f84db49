"""A prompt as a strip of a few spans: what each part is, and how much is reused."""

from __future__ import annotations

import numpy as np

from mlxlab.prompt import GLUE_ROLES, Prompt
from mlxlab.strategies import Plan

__all__ = ["make_strip"]

#: Most spans of a strip. The turns in the middle of a long conversation are one.
_MOST = 32
_MIDDLE = "messages"


def make_strip(prompt: Prompt, plan: Plan) -> list[tuple[str, int, int]]:
    """Return kind, tokens and reused tokens of each span, in the prompt's order.

    Kinds are the roles of segments. Text of the template belongs to what is in front
    of it. Neighbours of one kind are one span. Moved tokens that are computed again
    count as reused.

    Args:
        prompt: the rendered request.
        plan: for that prompt.
    """
    is_reused = np.zeros(len(prompt), np.int64)
    for span in plan.spans:
        is_reused[span.target : span.target + span.length] = 1
    before = np.concatenate([[0], np.cumsum(is_reused)])
    spans: list[tuple[str, int, int]] = []
    for segment in prompt.segments:
        kind = str(segment.role)
        reused = int(before[segment.stop] - before[segment.start])
        if spans and (segment.role in GLUE_ROLES or spans[-1][0] == kind):
            kind, tokens, known = spans.pop()
            spans.append((kind, tokens + len(segment), known + reused))
        else:
            spans.append((kind, len(segment), reused))
    return _shortened(_named(spans))


def _named(spans: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Let text of the template in front of everything belong to what follows."""
    if len(spans) > 1 and spans[0][0] in GLUE_ROLES:
        (_, tokens, reused), (kind, more, known), *rest = spans
        return [(kind, tokens + more, reused + known), *rest]
    return spans


def _shortened(spans: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Join the spans in the middle, if there are too many."""
    if len(spans) <= _MOST:
        return spans
    head, tail = _MOST // 2, _MOST - _MOST // 2 - 1
    middle = spans[head:-tail]
    tokens = sum(span[1] for span in middle)
    reused = sum(span[2] for span in middle)
    return [*spans[:head], (_MIDDLE, tokens, reused), *spans[-tail:]]
