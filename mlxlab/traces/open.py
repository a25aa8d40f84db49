"""Opens recorded and hashed traces, whichever the file holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mlxlab.errors import TraceError
from mlxlab.traces.bundled import bundled_traces, load_trace
from mlxlab.traces.hashed.base import HASHED_FORMATS
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.trace import Trace

__all__ = ["open_traces", "read_trace"]


def open_traces(names: Iterable[str | Path]) -> list[Trace | HashedTrace]:
    """Traces by name or path; a folder stands for all trace files in it.

    Raises:
        TraceError: as :func:`read_trace`, or a folder without one.
    """
    return [read_trace(path) for name in names for path in _files(name)]


def read_trace(name: str | Path) -> Trace | HashedTrace:
    """Read a recorded or hashed trace.

    Args:
        name: the name of a bundled trace, or the path of a file.

    Raises:
        TraceError: no such file, or it cannot be read.
    """
    if str(name) in bundled_traces():
        return load_trace(name)
    for hashed in HASHED_FORMATS.recognizing(Path(name)):
        return hashed.open(Path(name))
    return load_trace(name)


def _files(name: str | Path) -> Iterator[str | Path]:
    if str(name) in bundled_traces() or not Path(name).is_dir():
        yield name
        return
    files = [*Path(name).glob("*.jsonl"), *Path(name).glob("*.json*.gz")]
    if not files:
        raise TraceError(f"{name}: no trace in it; accepted: .jsonl, .json.gz")
    yield from sorted(files)
