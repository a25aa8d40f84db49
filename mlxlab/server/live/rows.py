"""Rows of the live view: one request each, with the facts that are known by now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, TypeAlias

from mlxlab.server.event_log import Event, Stage

__all__ = ["Row", "Span", "reduce_spans"]

Span: TypeAlias = tuple[str, int, int]
"""Kind, tokens, and how many of them were reused; neighbours in a prompt."""

#: A span is shown by itself if it takes this share of its prompt.
_SHOWN_SHARE = 1 / 100
#: Most characters of a fact that is text.
_CHARACTERS = 2000
#: Stages that say how far a request is; the others come behind its end.
_STEPS = frozenset(Stage.__members__.values()) - {"evicted", "explained"}


@dataclass(slots=True)
class Row:
    """What is known of one request; None and empty values are not known.

    Attributes:
        request: its number.
        t: arrival, Unix seconds.
        version: of the view, when the row last changed.
        stage: the latest step of the request.
        stage_t: when the row came to that stage, Unix seconds.
        spans: the prompt from left to right, see :func:`reduce_spans`.
        behind: the request that it waits for.
        done_tokens: prompt tokens restored and computed so far.
        cause: why tokens were computed that had been computed before.
        by: the request that evicted them.
        detail: lines on the block that broke the prompt.
        shadow: reused tokens under other strategies.

    The other attributes are those of :class:`~mlxlab.server.metrics.Served`.
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
    spans: Sequence[Span] = ()
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
    shadow: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether the request has ended."""
        return self.stage == Stage.ENDED

    def take(self, event: Event, version: int) -> None:
        """Add the facts of an event."""
        self.version = version
        if event.stage in _STEPS and event.stage != self.stage:
            self.stage, self.stage_t = str(event.stage), event.t
        for name in _FACTS & event.facts.keys():
            setattr(self, name, _bounded(event.facts[name]))
        if "spans" in event.facts:
            self.spans = reduce_spans(event.facts["spans"])

    def to_dict(self) -> dict[str, Any]:
        """Return the known facts as JSON values."""
        found = {name: getattr(self, name) for name in _SHOWN}
        return {name: value for name, value in found.items() if value not in _UNKNOWN}


_SHOWN = [f.name for f in fields(Row) if f.name != "version"]
_FACTS = frozenset(_SHOWN) - {"request", "t", "stage", "stage_t", "spans"}
_UNKNOWN: tuple[object, ...] = (None, "", (), {})


def _bounded(value: Any) -> Any:
    return value[:_CHARACTERS] if isinstance(value, str) else value


def reduce_spans(spans: Iterable[Sequence[Any]]) -> list[Span]:
    """Join spans that are too short to be seen, in prompt order.

    A run of short neighbours becomes one span, of the kind that has most of its tokens.

    Args:
        spans: kind, tokens and reused tokens of each.

    Returns:
        At most 201 spans with the same sums.
    """
    given: list[Span] = [(str(kind), int(n), int(hit)) for kind, n, hit in spans]
    least = sum(n for _, n, _ in given) * _SHOWN_SHARE
    reduced: list[Span] = []
    for is_short, run in groupby(given, lambda span: span[1] < least):
        reduced += _joined(list(run)) if is_short else run
    return reduced


def _joined(spans: Sequence[Span]) -> list[Span]:
    if not spans:
        return []
    kind = max(spans, key=lambda span: span[1])[0]
    return [(kind, sum(n for _, n, _ in spans), sum(hit for _, _, hit in spans))]
