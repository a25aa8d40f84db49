"""Finds what this machine knows about its traffic: recordings, history, a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mlxlab.client.discovery import Endpoint, running
from mlxlab.errors import MlxlabError, TraceError
from mlxlab.traces import Trace
from mlxlab.traces.bundled import DEFAULT_TRACE, bundled_traces
from mlxlab.traces.importers import IMPORTERS, import_trace
from mlxlab.traces.open import (
    AnyTrace,
    TraceLike,
    Traces,
    open_traces,
    read_trace,
)
from mlxlab.traces.recording.latest import find_latest

__all__ = ["LIMIT", "Evidence", "find_evidence"]

#: Requests that are explained, the newest ones: about a minute of work.
LIMIT = 1000
#: A recording is complete, so it goes before a history, which often is not. One of
#: fewer requests says too little.
_FEW = 20
_HISTORY = "claude-code"
#: Anonymised traces begin long before, so their days mean nothing.
_EARLIEST = datetime(2023, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found.

    Attributes:
        traces: the requests to explain.
        source: where they come from.
        others: what else was found, a line each.
        endpoint: the server that runs here, None without one. Of several the latest.
    """

    traces: Sequence[AnyTrace]
    source: str
    others: tuple[str, ...] = ()
    endpoint: Endpoint | None = None

    @property
    def days(self) -> str:
        """The days of the first and the last request; empty if not known."""
        times = [e.t for t in self.traces if isinstance(t, Trace) for e in t.inference]
        if not times or min(times) < _EARLIEST:
            return ""
        first, last = (
            datetime.fromtimestamp(t, UTC).date() for t in (min(times), max(times))
        )
        return f"{first}" if first == last else f"{first} to {last}"


def find_evidence(
    traces: Traces | None = None, *, fill: bool = False, progress: bool = True
) -> Evidence:
    """Find requests to explain.

    The latest recording is taken, else the client's history, else a recording of a few
    requests.

    Args:
        traces: names, paths or opened traces that are taken instead. A file of another
            program is imported.
        fill: see :func:`mlxlab.traces.filling.fill.fill_history`.
        progress: whether to show bars.

    Raises:
        TraceError: no request was found, or a named trace cannot be read.
    """
    endpoint, others = _endpoint()
    if traces is not None:
        opened = list(_open(traces, fill, progress))
        source = ", ".join(trace.name for trace in opened[:3])
        more = f" and {len(opened) - 3} more" if len(opened) > 3 else ""
        return Evidence(opened, source + more, others, endpoint)
    recording = _recording()
    if recording is not None and len(recording[1].inference) >= _FEW:
        return _evidence("recording", *recording, others, endpoint)
    try:
        history = import_trace(limit=LIMIT, fill=fill, progress=progress)
    except MlxlabError as error:
        missing = str(error).split(";")[0]
    else:
        path = IMPORTERS[_HISTORY].default_path()
        return _evidence("history", path, history, others, endpoint)
    if recording is not None:
        return _evidence("recording", *recording, others, endpoint)
    raise TraceError(
        f"no requests found ({missing}; no recording): record some, mlxlab serve "
        f"--record FILE, or see an example, mlxlab doctor {DEFAULT_TRACE}"
    )


def _open(traces: Traces, fill: bool, progress: bool) -> Iterator[AnyTrace]:
    """Open traces, and import the files of other programs."""
    for one in [traces] if isinstance(traces, TraceLike) else traces:
        if isinstance(one, str | Path) and _is_foreign(Path(one)):
            yield import_trace(one, limit=LIMIT, fill=fill, progress=progress)
        else:
            yield from open_traces(one, fill=fill)


def _is_foreign(path: Path) -> bool:
    return str(path) not in bundled_traces() and bool(IMPORTERS.recognizing(path))


def _evidence(
    kind: str,
    path: Path | None,
    trace: Trace,
    others: tuple[str, ...],
    endpoint: Endpoint | None,
) -> Evidence:
    """Return a found trace, cut to its newest requests."""
    source = f"{kind} {path}"
    if len(trace.inference) >= LIMIT:
        trace = replace(trace, exchanges=trace.inference[-LIMIT:])
        source += f", the newest {LIMIT:,} requests"
    return Evidence([trace], source, others, endpoint)


def _endpoint() -> tuple[Endpoint | None, tuple[str, ...]]:
    try:
        found = running()
    except MlxlabError as error:
        return None, (f"server: {error}",)
    if not found:
        return None, ()
    return found[-1], tuple(
        f"server: {e.url}, {e.model}, {e.strategy}, rules {e.rules}" for e in found
    )


def _recording() -> tuple[Path, Trace] | None:
    """Return the latest recording, if it can be read and holds requests."""
    try:
        path = find_latest()
        trace = read_trace(path)
    except MlxlabError:
        return None
    return (path, trace) if isinstance(trace, Trace) and trace.inference else None
