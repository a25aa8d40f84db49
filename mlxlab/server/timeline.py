"""Turns the events of a server into a timeline for Perfetto or ``chrome://tracing``.

The format is Chrome's JSON of trace events: complete events (``X``) in microseconds,
instants (``i``), and names of processes and threads as metadata (``M``). A process is a
session, and a thread is a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import Any

from mlxlab.server.event_log import Event, Stage

__all__ = ["make_timeline"]

#: What a request does after a stage.
_SPANS = {
    Stage.ARRIVED: "render",
    Stage.QUEUED: "queue",
    Stage.PLANNED: "prefill",
    Stage.FIRST_TOKEN: "decode",
}

#: Facts that quote the prompt.
_TEXT = {"detail"}


def make_timeline(events: Iterable[Event]) -> dict[str, Any]:
    """Return trace events: a JSON object.

    Args:
        events: in any order. Requests whose arrival is missing are left out.
    """
    rows: list[dict[str, Any]] = []
    sessions: dict[str, int] = {}
    ordered = sorted(events, key=lambda event: (event.request, event.number))
    for _, group in groupby(ordered, key=lambda event: event.request):
        own = list(group)
        if own[0].stage is Stage.ARRIVED:
            session = own[0].facts["session"]
            process = sessions.setdefault(session, len(sessions) + 1)
            rows += _names(own[0], process)
            rows += _request(own, process)
    return {"traceEvents": rows, "displayTimeUnit": "ms"}


def _names(arrival: Event, process: int) -> Iterator[dict[str, Any]]:
    facts, place = arrival.facts, {"pid": process, "tid": arrival.request}
    names = {
        "process_name": f"session {facts['session']}",
        "thread_name": f"#{arrival.request} {facts['agent'] or 'main'}",
    }
    for kind, name in names.items():
        yield {"ph": "M", "name": kind, **place, "args": {"name": name}}


def _request(events: list[Event], process: int) -> Iterator[dict[str, Any]]:
    place = {"pid": process, "tid": events[0].request}
    stages = [e for e in events if e.stage in _SPANS or e.stage is Stage.ENDED]
    for event, following in pairwise(stages):
        start, stop = _micros(event), _micros(following)
        span = {"ph": "X", "name": _SPANS[event.stage], "ts": start, **place}
        yield {**span, "dur": stop - start, "args": dict(event.facts)}
    for event in events:
        if event.stage not in _SPANS:
            name = str(event.stage)
            facts = {k: v for k, v in event.facts.items() if k not in _TEXT}
            instant = {"ph": "i", "s": "t", "name": name, "ts": _micros(event)}
            yield {**instant, **place, "args": facts}


def _micros(event: Event) -> int:
    return round(event.t * 1e6)
