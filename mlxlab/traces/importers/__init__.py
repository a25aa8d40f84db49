"""Importers: one file per foreign format, each returning a Trace."""

from __future__ import annotations

from pathlib import Path

from mlxlab.errors import TraceError
from mlxlab.traces.importers.base import Importer
from mlxlab.traces.importers.capture import import_capture, is_capture
from mlxlab.traces.importers.claude_code.importer import (
    history,
    import_transcripts,
    is_transcript,
)
from mlxlab.traces.importers.claude_trace import import_claude_trace, is_claude_trace
from mlxlab.traces.importers.selection import EVERYTHING, Selection, parse_date
from mlxlab.traces.importers.telemetry import import_telemetry, is_telemetry
from mlxlab.traces.trace import Trace

__all__ = [
    "AUTO",
    "IMPORTERS",
    "Importer",
    "Selection",
    "import_trace",
    "parse_date",
]

#: The format that stands for whatever is recognized.
AUTO = "auto"

#: In the order in which they are asked whether they recognize something.
IMPORTERS: dict[str, Importer] = {
    importer.name: importer
    for importer in (
        Importer(
            "claude-code",
            "Claude Code's own history, ~/.claude/projects or a part of it",
            import_transcripts,
            is_transcript,
            projects=True,
        ),
        Importer(
            "telemetry",
            "bodies that Claude Code writes with OTEL_LOG_RAW_API_BODIES=file:FOLDER",
            import_telemetry,
            is_telemetry,
        ),
        Importer(
            "claude-trace",
            "logs of claude-trace, .claude-trace/log-*.jsonl",
            import_claude_trace,
            is_claude_trace,
        ),
        Importer(
            "capture",
            "HTTP requests, an object {t, method, path, headers, body} a line",
            import_capture,
            is_capture,
        ),
    )
}


def import_trace(
    path: str | Path | None = None,
    format: str = AUTO,
    selection: Selection = EVERYTHING,
    *,
    progress: bool = True,
) -> Trace:
    """Make a trace of what another program kept.

    Args:
        path: a file or folder; by default Claude Code's history.
        format: a key of :data:`IMPORTERS`, or ``auto`` for the one that recognizes it.
        selection: what of it is wanted.
        progress: whether to show a bar.

    Raises:
        TraceError: no such format, or nothing of it at ``path``.
    """
    if format not in {AUTO, *IMPORTERS}:
        known = ", ".join((AUTO, *IMPORTERS))
        raise TraceError(f"no format {format!r}; choose from {known}")
    if path is None:
        if format not in {AUTO, "claude-code"}:
            raise TraceError(f"format {format}: give the path of a file or folder")
        path, format = history(), "claude-code"
    path = Path(path)
    importer = _recognized(path) if format == AUTO else IMPORTERS[format]
    if selection.project and not importer.projects:
        raise TraceError(f"format {importer.name} knows no projects; leave them out")
    return importer.read(path, selection, progress=progress)


def _recognized(path: Path) -> Importer:
    for importer in IMPORTERS.values():
        if importer.recognizes(path):
            return importer
    raise TraceError(
        f"{path}: of no format that is recognized; if it is one of "
        f"{', '.join(IMPORTERS)}, name it"
    )
