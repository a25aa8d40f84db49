"""Where the latest recording is, so that a warm-up finds it."""

from __future__ import annotations

import logging
from pathlib import Path

from mlxlab.errors import TraceError
from mlxlab.files import cache_folder, write_private
from mlxlab.ownership import read_own

__all__ = ["LATEST", "find_latest", "note_latest"]

log = logging.getLogger(__name__)

#: Stands for the latest recording where a trace is asked for.
LATEST = "latest"


def note_latest(path: Path) -> None:
    """Remember a recording; without a writable cache folder, say so."""
    try:
        write_private(_file(), str(path.absolute()).encode())
    except OSError as error:
        log.warning("the recording will not be found as the latest: %s", error)


def find_latest() -> Path:
    """Return the recording that a server began last.

    Raises:
        TraceError: there is none, or it is gone.
    """
    try:
        path = Path(read_own(_file()).decode())
    except (OSError, UnicodeDecodeError):
        raise TraceError(
            "latest recording: none yet; record one with --record FILE, or give a trace"
        ) from None
    if not path.exists():
        raise TraceError(f"latest recording: {path} is gone; give another trace")
    return path


def _file() -> Path:
    return cache_folder() / "latest-recording"
