"""Pieces of a prompt: which of its tokens were reused, were computed, or are left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

from mlxlab.prompt import Role

__all__ = ["Fill", "Piece", "Span", "make_pieces", "reduce_spans"]

#: A span is shown by itself if it takes this share of its prompt.
_SHOWN_SHARE = 1 / 100
#: Short names of blocks, for strips.
_LABELS = {
    Role.ATTRIBUTION: "header",
    Role.SYSTEM: "system",
    Role.TOOLS: "tools",
    Role.INLINE_SYSTEM: "env",
    Role.USER: "user",
    Role.TOOL_RESULT: "result",
    Role.ASSISTANT: "answer",
    Role.ANSWER: "answer",
}


class Fill(StrEnum):
    """What happened to the tokens of a piece; a break has none."""

    REUSED = "reused"
    COMPUTED = "computed"
    LEFT = "left"
    BREAK = "break"


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one kind: reused ones, then computed ones."""

    kind: str
    tokens: int
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens with one fill; the first of a span has its label."""

    fill: Fill
    tokens: int
    label: str = ""


def reduce_spans(given: Iterable[Any]) -> tuple[Span, ...]:
    """Join spans that are too short to be seen, in prompt order.

    A run of short neighbours becomes one span, of the kind that has most tokens.

    Args:
        given: kind, tokens and reused tokens of each.

    Returns:
        At most 201 spans with the same sums.
    """
    spans = [Span(str(kind), int(n), int(hit)) for kind, n, hit in given]
    least = sum(span.tokens for span in spans) * _SHOWN_SHARE
    reduced: list[Span] = []
    for is_short, run in groupby(spans, lambda span: span.tokens < least):
        reduced += [_join(list(run))] if is_short else run
    return tuple(reduced)


def _join(spans: list[Span]) -> Span:
    kind = max(spans, key=lambda span: span.tokens).kind
    return Span(kind, sum(s.tokens for s in spans), sum(s.reused for s in spans))


def make_pieces(spans: Iterable[Span], done: int, *, is_broken: bool) -> list[Piece]:
    """Cut spans where their fill changes, in prompt order.

    Args:
        spans: the prompt.
        done: tokens restored and computed so far.
        is_broken: whether tokens were computed that had been computed before. Then the
            first computed token is marked.
    """
    pieces: list[Piece] = []
    start = 0
    for span in spans:
        label = _LABELS.get(Role(span.kind), "") if span.kind in _ROLES else ""
        for piece in _cut(span, done - start):
            if is_broken and piece.fill is not Fill.REUSED:
                pieces.append(Piece(Fill.BREAK, 0))
                is_broken = False
            pieces.append(Piece(piece.fill, piece.tokens, label))
            label = ""
        start += span.tokens
    return pieces


_ROLES = frozenset(map(str, Role))


def _cut(span: Span, done: int) -> Iterator[Piece]:
    computed = min(max(done - span.reused, 0), span.tokens - span.reused)
    sizes = {
        Fill.REUSED: span.reused,
        Fill.COMPUTED: computed,
        Fill.LEFT: span.tokens - span.reused - computed,
    }
    return (Piece(fill, tokens) for fill, tokens in sizes.items() if tokens)
