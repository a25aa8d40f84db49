"""Importers make traces from the files of other programs, one file per format."""

from __future__ import annotations

from pathlib import Path

from mlxlab.errors import TraceError, did_you_mean
from mlxlab.traces.filling.fill import fill_history
from mlxlab.traces.hashed.base import HASHED_FORMATS
from mlxlab.traces.importers.base import (
    IMPORTERS,
    Importer,
    Selection,
    parse_date,
)
from mlxlab.traces.trace import Trace

__all__ = ["AUTO", "IMPORTERS", "Importer", "Selection", "import_trace"]

#: Stands for the format that recognizes the path.
AUTO = "auto"
#: Imported when no path is given.
_DEFAULT = "claude-code"


def import_trace(
    path: str | Path | None = None,
    format: str = AUTO,
    *,
    since: str | float | None = None,
    project: str = "",
    limit: int | None = None,
    fill: bool = False,
    progress: bool = True,
) -> Trace:
    """Make a trace from files that another program wrote.

    Secrets are replaced, and ``Trace.skipped`` counts what was left out or changed.

    Args:
        path: a file or folder; Claude Code's history by default.
        format: a name in :data:`IMPORTERS`, or ``auto`` to recognize it.
        since: the earliest arrival, an ISO date or time, or Unix seconds.
        project: a part of the name of a project's folder; only for formats with
            projects.
        limit: the number of requests to keep, the newest ones; None for all.
        fill: whether requests without system text and tools get assumed ones, see
            :func:`mlxlab.traces.filling.fill.fill_history`.
        progress: whether to show a bar.

    Raises:
        TraceError: an unknown format, a filter that does not apply to it, or no request
            within the filters at ``path``.
    """
    start = parse_date(since) if isinstance(since, str) else since
    selection = Selection(float("-inf") if start is None else start, project, limit)
    if format not in {AUTO, *IMPORTERS}:
        near, known = did_you_mean(format, IMPORTERS), ", ".join((AUTO, *IMPORTERS))
        raise TraceError(f"no format {format!r}; choose from {known}{near}")
    if path is None:
        importer = IMPORTERS[_DEFAULT if format == AUTO else format]
        path = importer.default_path()
        if path is None:
            raise TraceError(f"format {format}: give the path of a file or folder")
    else:
        path = Path(path)
        importer = _recognized(path) if format == AUTO else IMPORTERS[format]
    trace = importer.read(path, selection, progress=progress)
    return fill_history(trace) if fill else trace


def _recognized(path: Path) -> Importer:
    match IMPORTERS.recognizing(path):
        case [importer]:
            return importer
        case [_, _, *_] as several:
            names = ", ".join(importer.name for importer in several)
            raise TraceError(f"{path}: looks like {names}; name its format")
    for hashed in HASHED_FORMATS.recognizing(path):
        raise TraceError(
            f"{path}: a hashed trace ({hashed.name}), used as it is: "
            f"mlxlab sweep {path}"
        )
    known = ", ".join(IMPORTERS)
    raise TraceError(f"{path}: no known format; if it is one of {known}, name it")
