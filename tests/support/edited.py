"""Requests made of pieces, and edits of them, for approximate strategies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from mlxlab.prompt import Role, Segment
from tests.support.ledger import Request

__all__ = ["Piece", "edited_traffic", "message", "request", "system", "text", "tool"]

TEMPLATE = [1, 2]


@dataclass(frozen=True)
class Piece:
    """One block of a prompt; ``kind`` is ``system``, ``tools`` or ``messages``."""

    kind: str
    ids: tuple[int, ...]


def text(length: int, seed: int) -> tuple[int, ...]:
    """Return random ids, as from a vocabulary."""
    return tuple(np.random.default_rng(seed).integers(10, 50_000, length).tolist())


def system(length: int, seed: int) -> Piece:
    return Piece("system", text(length, seed))


def tool(length: int, seed: int) -> Piece:
    return Piece("tools", text(length, seed))


def message(length: int, seed: int) -> Piece:
    return Piece("messages", text(length, seed))


def request(*pieces: Piece, answer: tuple[int, ...] = ()) -> Request:
    """Return a prompt of pieces, each behind two template tokens, labelled in order."""
    roles = {"system": Role.SYSTEM, "tools": Role.TOOLS, "messages": Role.USER}
    ids: list[int] = []
    segments: list[Segment] = []
    numbers: Counter[str] = Counter()
    for piece in pieces:
        for label, role, more in (
            ("template", Role.TEMPLATE, TEMPLATE),
            (f"{piece.kind}[{numbers[piece.kind]}]", roles[piece.kind], piece.ids),
        ):
            if more:
                segments.append(Segment(label, role, len(ids), len(ids) + len(more)))
                ids += more
        numbers[piece.kind] += 1
    return Request(ids, list(answer), segments=tuple(segments))


@st.composite
def edited_traffic(draw: st.DrawFn, max_requests: int = 8) -> list[Request]:
    """Draw requests that each edit and extend an earlier one; pieces recur."""
    kinds = st.sampled_from(["system", "tools", "messages"])
    bank = [
        Piece(draw(kinds), tuple(range(100 * i, 100 * i + draw(st.integers(1, 14)))))
        for i in range(1, 9)
    ]
    known = st.sampled_from(bank)
    conversations = [draw(st.lists(known, min_size=3, max_size=7))]
    requests: list[Request] = []
    for number in range(draw(st.integers(2, max_requests))):
        pieces = list(draw(st.sampled_from(conversations[-3:])))
        for _ in range(draw(st.integers(0, 2))):
            _edit(draw, pieces, draw(known), 10_000 + number)
        pieces += draw(st.lists(known, max_size=2)) or bank[:1]
        answer = draw(st.lists(st.integers(5000, 5002), max_size=4))
        conversations.append([*pieces, Piece("messages", tuple(answer))])
        requests.append(request(*pieces, answer=(*TEMPLATE, *answer)))
    return requests


def _edit(draw: st.DrawFn, pieces: list[Piece], other: Piece, new: int) -> None:
    """Insert, delete, replace, move, touch or cut pieces at a random place."""
    edit = draw(
        st.sampled_from(["insert", "delete", "replace", "move", "touch", "cut"])
    )
    at = draw(st.integers(0, max(len(pieces) - 1, 0)))
    to = draw(st.integers(0, max(len(pieces) - 1, 0)))
    if edit == "insert" or not pieces:
        pieces.insert(at, other)
    elif edit == "delete":
        del pieces[at]
    elif edit == "replace":
        pieces[at] = other
    elif edit == "move":
        pieces.insert(to, pieces.pop(at))
    elif edit == "cut":
        del pieces[min(at, to) : max(at, to)]
    else:
        ids = pieces[at].ids
        cut = draw(st.integers(0, len(ids)))
        pieces[at] = Piece(pieces[at].kind, (*ids[:cut], new, *ids[cut:]))
