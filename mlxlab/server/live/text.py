"""Rows and totals of the live view as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxlab.server.event_log import Stage
from mlxlab.server.live.pieces import Fill, Piece
from mlxlab.server.live.rows import Row

__all__ = ["describe_row", "describe_totals", "draw_strip"]

_GLYPHS = {Fill.REUSED: "░", Fill.COMPUTED: "▓", Fill.LEFT: "▒", Fill.BREAK: "▼"}


def draw_strip(pieces: Sequence[Piece], cells: int) -> Iterator[tuple[Fill, str]]:
    """Yield each piece with its characters: labels where they fit.

    Args:
        pieces: the prompt.
        cells: characters for its tokens; a break takes one more.
    """
    tokens = sum(piece.tokens for piece in pieces) or 1
    passed = 0
    for piece in pieces:
        start = round(cells * passed / tokens)
        passed += piece.tokens
        width = round(cells * passed / tokens) - start
        glyph = _GLYPHS[piece.fill]
        if piece.fill is Fill.BREAK:
            yield piece.fill, glyph
        elif width:
            label = piece.label if len(piece.label) + 2 <= width else ""
            yield piece.fill, label.center(width, glyph)


def describe_row(row: Row, now: float) -> tuple[str, str, str, str]:
    """Return name, reused share, computed tokens, and state with cause.

    Args:
        row: a request.
        now: Unix seconds.
    """
    share = computed = ""
    if row.prompt_tokens is not None and row.reused_tokens is not None:
        share = format_part(row.reused_tokens, row.prompt_tokens)
        computed = f"{row.prompt_tokens - row.reused_tokens:,} new"
    state = [_describe_state(row, max(now - row.stage_t, 0.0)), row.headline]
    name = f"#{row.request} {row.agent or 'main'}"
    return name, share, computed, "  ".join(filter(None, state))


def describe_totals(totals: Mapping[str, Any]) -> str:
    """Return what all requests come to, in one line.

    Args:
        totals: see :meth:`mlxlab.server.live.view.View.since`.
    """
    parts = [f"{totals['running']} running, {totals['queued']} queued"]
    if "ttft_p50_s" in totals:
        p50, p95 = totals["ttft_p50_s"], totals["ttft_p95_s"]
        parts.insert(0, f"TTFT p50 {p50:.1f} p95 {p95:.1f} s")
    if totals["requests"]:
        share = format_part(totals["reused_tokens"], totals["prompt_tokens"])
        parts.insert(0, f"{share} reused")
    return " · ".join(parts)


def format_part(part: int, whole: int) -> str:
    """Return a share in percent, 100 only if it is all."""
    share = 100 * part / whole if whole else 0.0
    return f"{int(share) if share > 99 else round(share)} %"


def _describe_state(row: Row, since_s: float) -> str:
    match row.stage:
        case Stage.ARRIVED:
            return f"rendering {since_s:.1f} s"
        case Stage.QUEUED:
            behind = f" behind #{row.behind}" if row.behind else ""
            return f"queued {since_s:.1f} s{behind}"
        case Stage.PLANNED | Stage.PROGRESS:
            done = row.done_tokens or row.reused_tokens or 0
            return f"{format_part(done, row.prompt_tokens or 0)} done"
        case Stage.FIRST_TOKEN:
            return f"answers {since_s:.1f} s"
    return row.outcome if row.ttft_s is None else f"{row.ttft_s:.1f} s"
