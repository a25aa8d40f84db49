"""The contract of importers: recognize a foreign format, find the requests in it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from mlxlab.errors import TraceError
from mlxlab.printable import encodable
from mlxlab.traces.formats import Format, Registry
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.schema import HeaderLine
from mlxlab.traces.trace import Exchange, Trace

__all__ = ["EVERYTHING", "IMPORTERS", "Importer", "Selection", "parse_date"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters of an import.

    Attributes:
        since: arrival of the earliest request, Unix seconds.
        project: a part of the name of a project's folder.
        limit: the number of requests to keep, the newest ones; None for all.

    Raises:
        TraceError: a limit below 1.
    """

    since: float = float("-inf")
    project: str = ""
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise TraceError(
                f"limit {self.limit}: give a number of requests, 1 or more"
            )

    @property
    def filters(self) -> frozenset[str]:
        """Names of the attributes that differ from their defaults."""
        return frozenset(
            field.name
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )

    def apply(self, exchanges: Iterable[Exchange]) -> list[Exchange]:
        """Return the exchanges within ``since`` and ``limit``, in order of arrival."""
        wanted = sorted(
            (e for e in exchanges if e.t >= self.since), key=lambda exchange: exchange.t
        )
        return wanted if self.limit is None else wanted[-self.limit :]


EVERYTHING = Selection()


class Importer(Format):
    """A foreign format that traces are made from.

    A subclass finds the requests. Filtering by time and number, numbering and counting
    are done here.

    Attributes:
        filters: names of the attributes of :class:`Selection` that apply. Importers
            that evaluate more than ``since`` and ``limit`` extend it.
    """

    filters: ClassVar[frozenset[str]] = frozenset({"since", "limit"})

    @abstractmethod
    def exchanges(
        self, path: Path, selection: Selection, tally: Tally, *, progress: bool
    ) -> Iterable[Exchange]:
        """Find the requests in a file or folder.

        Args:
            path: the file or folder.
            selection: the filters; ``since`` and ``limit`` are applied afterwards, so
                they only serve to skip files.
            tally: counts what is left out or changed.
            progress: whether to show a bar.

        Returns:
            Exchanges in any order and with any ids.

        Raises:
            TraceError: ``path`` cannot be read.
        """

    def default_path(self) -> Path | None:
        """Return where the format is found on this machine, None if not known."""
        return None

    def read(
        self, path: Path, selection: Selection = EVERYTHING, *, progress: bool = True
    ) -> Trace:
        """Make a trace of the selected requests, numbered by arrival.

        Args:
            path: the file or folder.
            selection: the filters.
            progress: whether to show a bar.

        Raises:
            TraceError: ``path`` cannot be read, no request is left, or a filter does
                not apply to this format.
        """
        for name in sorted(selection.filters - self.filters):
            raise TraceError(
                f"format {self.name} cannot be filtered by {name}; "
                f"accepted: {', '.join(sorted(self.filters))}"
            )
        tally = Tally()
        found = self.exchanges(path, selection, tally, progress=progress)
        wanted = selection.apply(found)
        if not wanted:
            raise self._nothing(path, selection, tally)
        skipped = dict(sorted(tally.counts.items()))
        header = {"imported": self.name, "skipped": skipped}
        numbered = tuple(replace(e, id=id) for id, e in enumerate(wanted))
        return Trace(encodable(path.stem), numbered, HeaderLine.model_validate(header))

    def _nothing(self, path: Path, selection: Selection, tally: Tally) -> TraceError:
        counts = [f"{reason} ({n:,} times)" for reason, n in tally.counts.items()]
        within = "" if selection == EVERYTHING else " within the filters"
        skipped = f" (skipped: {'; '.join(counts)})" if counts else ""
        return TraceError(
            f"{path.stem}: no request of format {self.name} found{within}{skipped}; "
            "give other files, or wider filters"
        )


IMPORTERS: Registry[Importer] = Registry("mlxlab.traces.importers")


def parse_date(text: str) -> float:
    """Return Unix seconds of an ISO date or time, local unless it names a zone.

    Raises:
        TraceError: not a date.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise TraceError(f"{text!r}: not a date; give one such as 2026-11-23") from None
