"""The recorded traces that come with mlxlab, by name."""

from __future__ import annotations

from pathlib import Path

from mlxlab.errors import TraceError
from mlxlab.traces.trace import Trace, read_trace

__all__ = ["DEFAULT_TRACE", "bundled_traces", "load_trace"]

#: Three sessions in one project: what most users' days look like.
DEFAULT_TRACE = "sessions"

_PACKAGE = Path(__file__).parents[1]


def bundled_traces() -> dict[str, Path]:
    """Name to file. In a checkout they are in data/traces, else in the package."""
    for folder in (_PACKAGE.parent / "data/traces", _PACKAGE / "data/traces"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    return {}


def load_trace(name: str | Path) -> Trace:
    """A bundled trace by name, else the trace in the file of that path.

    Raises:
        TraceError: neither, or the file is damaged.
    """
    bundled = bundled_traces()
    path = bundled.get(str(name), Path(name))
    if not path.exists():
        known = ", ".join(bundled)
        raise TraceError(
            f"no trace {str(name)!r}: no such file; recorded ones: {known}"
        )
    return read_trace(path)
