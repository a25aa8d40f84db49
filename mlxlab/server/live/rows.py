"""Rows of the live view: one request each, with the facts that are known by now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mlxlab.analysis.misses.causes import Cause
from mlxlab.server.event_log import Event, Stage
from mlxlab.server.live.pieces import Piece, Span, make_pieces

__all__ = ["Row"]

#: Share of a prompt below which lost tokens are few.
_FEW = 0.02
#: Causes of prompts that resemble no earlier one.
_FIRST = frozenset({Cause.SESSION, Cause.AGENT, Cause.SIDE})
#: Most characters of a fact that is text.
_CHARACTERS = 2000
#: Stages that do not say how far a request is.
_ASIDE = frozenset({Stage.EVICTED, Stage.EXPLAINED})


@dataclass(slots=True)
class Row:
    """What is known of one request; None and empty values are not known.

    Attributes:
        request: its number.
        t: arrival, Unix seconds.
        version: of the view, when the row last changed.
        stage: the latest step of the request.
        stage_t: when the row came to that stage, Unix seconds.
        spans: the prompt from left to right, see :mod:`mlxlab.server.strip`.
        behind: the request that it waits for.
        done_tokens: prompt tokens restored and computed so far.

    Explained are ``cause`` and all behind it, see
    :class:`~mlxlab.server.explanation.Explanation`. The others are those of
    :class:`~mlxlab.server.metrics.Served`.
    """

    request: int
    t: float
    version: int = 0
    stage: str = ""
    stage_t: float = 0.0
    session: str = ""
    agent: str = ""
    model: str = ""
    strategy: str = ""
    prompt_tokens: int | None = None
    reused_tokens: int | None = None
    disk_tokens: int | None = None
    done_tokens: int | None = None
    output_tokens: int | None = None
    behind: int | None = None
    spans: tuple[Span, ...] = ()
    ttft_s: float | None = None
    queue_s: float | None = None
    restore_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    total_s: float | None = None
    outcome: str = ""
    cause: str = ""
    kind: str = ""
    lost_tokens: int | None = None
    lost_s: float | None = None
    by: int | None = None
    detail: str = ""
    remedy: str = ""
    shadow: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether the request has ended."""
        return self.stage == Stage.ENDED

    @property
    def is_broken(self) -> bool:
        """Whether tokens were computed that a setting would have saved, and not few."""
        return (self.lost_tokens or 0) > _FEW * (self.prompt_tokens or 0)

    @property
    def headline(self) -> str:
        """The cause, where it is worth a look."""
        return self.cause if self.is_broken or self.kind in _FIRST else ""

    def take(self, event: Event, version: int) -> None:
        """Add the facts of an event."""
        self.version = version
        if event.stage not in _ASIDE and event.stage != self.stage:
            self.stage, self.stage_t = str(event.stage), event.t
        for name in _FACTS & event.facts.keys():
            setattr(self, name, _bounded(event.facts[name]))
        if "spans" in event.facts:
            self.spans = tuple(Span(*span) for span in event.facts["spans"])

    def to_dict(self) -> dict[str, Any]:
        """Return the known facts as JSON values, with pieces in place of spans."""
        found = {name: getattr(self, name) for name in _SHOWN}
        found["headline"] = self.headline
        found["pieces"] = [asdict(piece) for piece in self.pieces()]
        return {name: value for name, value in found.items() if value not in _UNKNOWN}

    def pieces(self) -> list[Piece]:
        """Return the prompt from left to right."""
        tokens = self.prompt_tokens or 0
        spans = self.spans or (Span("", tokens, self.reused_tokens or 0),)
        is_computed = self.stage in (Stage.FIRST_TOKEN, Stage.ENDED)
        done = tokens if is_computed else self.done_tokens or 0
        return make_pieces(spans, done, is_broken=self.is_broken)


_SHOWN = [f.name for f in fields(Row) if f.name not in ("version", "spans")]
_FACTS = frozenset(_SHOWN) - {"request", "t", "stage", "stage_t"}
_UNKNOWN: tuple[object, ...] = (None, "", [], {})


def _bounded(value: Any) -> Any:
    return value[:_CHARACTERS] if isinstance(value, str) else value
