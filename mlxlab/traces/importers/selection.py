"""Which of the requests that an import finds are kept, and what becomes a trace.

Knows no format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from mlxlab.errors import TraceError
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.schema import HeaderLine
from mlxlab.traces.trace import Exchange, Trace

__all__ = ["EVERYTHING", "Selection", "assemble", "parse_date"]


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a source is wanted.

    Attributes:
        since: arrival of the earliest request, Unix seconds.
        project: what the name of a project's folder contains.
        limit: the newest so many requests; None for all.

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

    def of(self, exchanges: Iterable[Exchange]) -> list[Exchange]:
        """Those that are wanted, in order of arrival."""
        wanted = sorted(
            (e for e in exchanges if e.t >= self.since), key=lambda exchange: exchange.t
        )
        return wanted if self.limit is None else wanted[-self.limit :]


EVERYTHING = Selection()


def assemble(
    name: str,
    exchanges: Iterable[Exchange],
    selection: Selection,
    tally: Tally,
    form: str,
) -> Trace:
    """A trace of what was found, numbered by arrival.

    Args:
        name: of the trace, for messages too.
        exchanges: what was found; their ids do not matter.
        selection: what of it is wanted.
        tally: becomes the trace's ``skipped``.
        form: name of the format, kept as ``imported`` in the header.

    Raises:
        TraceError: nothing is left.
    """
    wanted = selection.of(exchanges)
    if not wanted:
        seen = "; ".join(
            f"{reason} ({n:,} times)" for reason, n in tally.counts.items()
        )
        filters = "" if selection == EVERYTHING else " that was asked for"
        found = f" (met: {seen})" if seen else ""
        raise TraceError(
            f"{name}: no request of format {form}{filters} found{found}; "
            "give other files, or a wider selection"
        )
    header = {"imported": form, "skipped": dict(sorted(tally.counts.items()))}
    numbered = tuple(replace(e, id=id) for id, e in enumerate(wanted))
    return Trace(name, numbered, HeaderLine.model_validate(header))


def parse_date(text: str) -> float:
    """Unix seconds of a date or time in ISO form; local unless it names a zone.

    Raises:
        TraceError: no such date.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise TraceError(f"{text!r}: no date; give one such as 2026-11-23") from None
