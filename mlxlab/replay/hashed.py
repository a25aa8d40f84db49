"""Requests of hashed traces: one number per unit of tokens in place of token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlxlab.prompt import Prompt, Role, Segment, Tokens
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.workload import Numbers, Timed
from mlxlab.traces.hashed.trace import HashedRequest, HashedTrace

__all__ = ["HashedSource", "NumberedRequest"]

#: The id of a prompt's last tokens if they are less than a unit.
_REST = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedRequest(RenderedRequest):
    """One hashed request; its prompt holds a number for each unit of tokens.

    Attributes:
        length: prompt tokens.
        sequence: numbers of the whole units of prompt and answer.
        content: int64, shape ``[pieces, 3]``: the start of a piece of the prompt, its
            tokens, and a number that is equal for equal content; no pieces if the trace
            holds no hashes of content.
    """

    length: int
    sequence: Prompt
    content: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return self.length

    @property
    def computed(self) -> Prompt:
        return self.sequence


@dataclass(frozen=True)
class HashedSource:
    """A hashed trace as a source."""

    trace: HashedTrace

    @property
    def name(self) -> str:
        return self.trace.name

    @property
    def digest(self) -> str:
        return self.trace.digest

    @property
    def unit(self) -> int:
        return self.trace.unit

    def requests(self, numbers: Numbers) -> Timed:
        chained, content = numbers.table(), Numbers().table()
        for i, request in enumerate(self.trace):
            numbered = replace(request, chained=chained(request.chained))
            yield request.t, self._render(i, numbered, content)

    def _render(
        self, i: int, request: HashedRequest, content: Callable[[Tokens], Tokens]
    ) -> NumberedRequest:
        unit, ids = self.unit, request.chained
        whole, rest = divmod(request.tokens, unit)
        # The last token of an answer is never stored.
        stored = (request.tokens + max(request.answer - 1, 0)) // unit
        tail = np.array([_REST] if rest else [], np.int32)
        asked = np.concatenate([ids[:whole], tail])
        session = ":".join(filter(None, (self.name, request.session)))
        agent = f"/{request.agent[:9]}" if request.agent else ""
        return NumberedRequest(
            session=session + agent,
            id=i,
            prompt=Prompt(asked, _segments(request, len(asked), unit), False),
            answer=ids[whole:stored],
            unit=unit,
            length=request.tokens,
            sequence=Prompt(ids[:stored], _segments(request, stored, unit), False),
            content=_pieces(request, unit, content),
        )


def _segments(request: HashedRequest, length: int, unit: int) -> tuple[Segment, ...]:
    """Return the parts of a prompt, to the unit; the rest is unknown."""
    segments: list[Segment] = []
    end = 0
    for role, tokens in request.roles:
        start, end = end, end + tokens
        first, last = start // unit, min(end // unit, length)
        if first < last:
            segments.append(Segment(str(role), role, first, last))
    known = segments[-1].stop if segments else 0
    if known < length:
        segments.append(Segment("messages", Role.UNKNOWN, known, length))
    return tuple(segments)


def _pieces(
    request: HashedRequest, unit: int, renumber: Callable[[Tokens], Tokens]
) -> NDArray[np.int64]:
    pieces: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    start = 0
    for (_, tokens), content in zip(request.roles, request.content, strict=False):
        offsets = np.arange(len(content)) * unit
        lengths = np.minimum(tokens - offsets, unit)
        pieces.append(np.stack([start + offsets, lengths, renumber(content)], axis=1))
        start += tokens
    return np.concatenate(pieces)
