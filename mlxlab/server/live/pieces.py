"""Pieces of a prompt: which of its tokens were reused, were computed, or are left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from mlxlab.prompt import Role

__all__ = ["Fill", "Piece", "Span", "make_pieces"]

#: Short names of roles, for strips.
_LABELS: Mapping[str, str] = {
    Role.ATTRIBUTION: "header",
    Role.SYSTEM: "system",
    Role.TOOLS: "tools",
    Role.INLINE_SYSTEM: "env",
    Role.USER: "user",
    Role.TOOL_RESULT: "result",
    Role.ASSISTANT: "answer",
    Role.ANSWER: "answer",
    "messages": "messages",
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


def make_pieces(spans: Iterable[Span], done: int, *, is_broken: bool) -> list[Piece]:
    """Cut spans where their fill changes, in prompt order.

    Args:
        spans: the prompt.
        done: tokens restored and computed so far.
        is_broken: whether the first computed token is marked.
    """
    pieces: list[Piece] = []
    start = 0
    for span in spans:
        label = _LABELS.get(span.kind, "")
        for piece in _cut(span, done - start):
            if is_broken and piece.fill is not Fill.REUSED:
                pieces.append(Piece(Fill.BREAK, 0))
                is_broken = False
            pieces.append(Piece(piece.fill, piece.tokens, label))
            label = ""
        start += span.tokens
    return pieces


def _cut(span: Span, done: int) -> Iterator[Piece]:
    computed = min(max(done - span.reused, 0), span.tokens - span.reused)
    sizes = {
        Fill.REUSED: span.reused,
        Fill.COMPUTED: computed,
        Fill.LEFT: span.tokens - span.reused - computed,
    }
    return (Piece(fill, tokens) for fill, tokens in sizes.items() if tokens)
