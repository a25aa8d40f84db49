"""Opens recorded and hashed traces, whichever the file holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from mlxlab.errors import TraceError
from mlxlab.traces.bundled import bundled_traces, load_trace
from mlxlab.traces.filling.fill import fill_history
from mlxlab.traces.hashed.base import HASHED_FORMATS
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.trace import Trace

__all__ = [
    "AnyTrace",
    "TraceLike",
    "Traces",
    "open_one",
    "open_recorded",
    "open_traces",
    "read_trace",
]

AnyTrace: TypeAlias = Trace | HashedTrace
TraceLike: TypeAlias = str | Path | AnyTrace
"""A trace, the name of a bundled one, or the path of a file or folder."""
Traces: TypeAlias = TraceLike | Iterable[TraceLike]


def open_traces(traces: Traces, *, fill: bool = False) -> list[AnyTrace]:
    """Open traces by name or path; opened traces stay as they are.

    Args:
        traces: one trace or several. A folder stands for all trace files in it:
            ``.jsonl``, ``.jsonl.gz``, ``.json.gz``, and ``.json`` that hold a hashed
            trace.
        fill: see :func:`mlxlab.traces.filling.fill.fill_history`.

    Raises:
        TraceError: no trace, or see :func:`read_trace`.
    """
    given = [traces] if isinstance(traces, TraceLike) else list(traces)
    opened = [trace for one in given for trace in _open(one)]
    if not opened:
        raise TraceError(
            f"no trace; give a file or one of {', '.join(bundled_traces())}"
        )
    return [_filled(trace) for trace in opened] if fill else opened


def open_recorded(traces: Traces) -> list[Trace]:
    """Open recorded traces by name or path, as :func:`open_traces` does.

    Raises:
        TraceError: a trace is hashed, or see :func:`open_traces`.
    """
    opened = open_traces(traces)
    recorded = [trace for trace in opened if isinstance(trace, Trace)]
    hashed = [trace.name for trace in opened if isinstance(trace, HashedTrace)]
    if hashed:
        raise TraceError(
            f"trace {hashed[0]}: hashed; give a recorded trace, or use misses, sweep "
            "or tune"
        )
    return recorded


def open_one(trace: str | Path | Trace) -> Trace:
    """Open one recorded trace by name or path.

    Raises:
        TraceError: not one trace, or see :func:`open_recorded`.
    """
    opened = open_recorded(trace)
    if len(opened) != 1:
        raise TraceError(f"{trace}: {len(opened)} traces; give one file")
    return opened[0]


def read_trace(name: str | Path, *, fill: bool = False) -> AnyTrace:
    """Read a recorded or hashed trace.

    Args:
        name: of a bundled trace, or the path of a file.
        fill: see :func:`mlxlab.traces.filling.fill.fill_history`.

    Raises:
        TraceError: no such file, or it cannot be read.
    """
    found = _read(name)
    return _filled(found) if fill else found


def _read(name: str | Path) -> AnyTrace:
    if str(name) in bundled_traces():
        return load_trace(name)
    for hashed in HASHED_FORMATS.recognizing(Path(name)):
        return hashed.open(Path(name))
    return load_trace(name)


def _filled(trace: AnyTrace) -> AnyTrace:
    """Fill a history; hashes hold no text to fill."""
    return fill_history(trace) if isinstance(trace, Trace) else trace


def _open(one: TraceLike) -> Iterator[AnyTrace]:
    if isinstance(one, AnyTrace):
        yield one
    else:
        yield from map(read_trace, _files(one))


def _files(name: str | Path) -> Iterator[str | Path]:
    if str(name) in bundled_traces() or not Path(name).is_dir():
        yield name
        return
    folder = Path(name)
    files = [*folder.glob("*.jsonl"), *folder.glob("*.json*.gz")]
    # Other programs and mlxlab itself write results beside traces, also as .json.
    files += filter(HASHED_FORMATS.recognizing, folder.glob("*.json"))
    if not files:
        raise TraceError(
            f"{name}: no trace in it; accepted: .jsonl, hashed .json, .json.gz"
        )
    yield from sorted(files)
