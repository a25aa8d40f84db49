"""What an importer is to those who choose one. Knows no format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlxlab.traces.importers.selection import Selection
from mlxlab.traces.trace import Trace

__all__ = ["Importer", "Read"]


class Read(Protocol):
    """Turns a file or folder into a trace."""

    def __call__(
        self, path: Path, selection: Selection = ..., *, progress: bool = ...
    ) -> Trace:
        """Read what is wanted of ``path``.

        Raises:
            TraceError: it cannot be read, or there is nothing of the format in it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Importer:
    """A format that traces are made from.

    Attributes:
        summary: what the format is, in a line.
        read: the importer itself.
        recognizes: whether a path, which exists, looks like the format.
        projects: whether it tells projects apart.
    """

    name: str
    summary: str
    read: Read
    recognizes: Callable[[Path], bool]
    projects: bool = False
