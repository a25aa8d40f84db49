"""The recorded traces that come with mlxlab, by name."""

from __future__ import annotations

from pathlib import Path

from mlxlab.errors import TraceError, did_you_mean
from mlxlab.traces.trace import Trace, read_trace

__all__ = ["DEFAULT_TRACE", "bundled_traces", "load_trace"]

#: Three sessions in one project, a common day of work.
DEFAULT_TRACE = "sessions"

_PACKAGE = Path(__file__).parents[1]


def bundled_traces() -> dict[str, Path]:
    """Return file by name, from data/traces of a checkout, else from the package."""
    for folder in (_PACKAGE.parent / "data/traces", _PACKAGE / "data/traces"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    return {}


def load_trace(trace: Trace | str | Path) -> Trace:
    """Return a recorded trace.

    Args:
        trace: the name of a bundled trace, the path of a trace file, or a trace, which
            is returned as it is.

    Raises:
        TraceError: neither name nor file exists, or the file is damaged.
    """
    if isinstance(trace, Trace):
        return trace
    bundled = bundled_traces()
    path = bundled.get(str(trace), Path(trace))
    if not path.exists():
        near, known = did_you_mean(str(trace), bundled), ", ".join(bundled)
        raise TraceError(
            f"no trace {str(trace)!r}: no such file; bundled traces: {known}{near}"
        )
    return read_trace(path)
