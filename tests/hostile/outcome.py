"""How cases end, counted by kind in a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["BAD", "Finding", "Outcome", "Row", "format_table"]

#: Ends that are allowed, and those that are not. ``left``: the client did.
GOOD = ("refused", "served", "left")
BAD = ("5xx", "hangs", "tracebacks", "deaths", "wrong")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one case.

    Attributes:
        end: one of :data:`GOOD` or :data:`BAD`.
        seconds: until then.
        memory: peak in bytes of the process that was tried.
        reason: what was seen, where the end is bad.
    """

    end: str
    seconds: float
    memory: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A case with a bad end."""

    kind: str
    seed: int
    outcome: Outcome

    def __str__(self) -> str:
        again = f"python -m tests.hostile --kind {self.kind} --seed {self.seed}"
        return f"{self.outcome.end}: {again} --cases 1\n{self.outcome.reason}"


@dataclass(slots=True)
class Row:
    """The counts of a kind.

    Attributes:
        ends: how many cases have ended in each way.
        longest: the most seconds of a case, and its seed.
        memory: the largest peak in bytes.
    """

    ends: Counter[str] = field(default_factory=Counter)
    longest: tuple[float, int] = (0.0, 0)
    memory: int = 0

    def add(self, outcomes: Iterable[Outcome], first: int) -> None:
        """Count cases, whose seeds begin with ``first``."""
        for seed, outcome in enumerate(outcomes, first):
            self.ends[outcome.end] += 1
            self.longest = max(self.longest, (outcome.seconds, seed))
            self.memory = max(self.memory, outcome.memory)


def format_table(rows: dict[str, Row]) -> str:
    """Return the counts, a line a kind, and their sum."""
    whole = Row()
    for row in rows.values():
        whole.ends += row.ends
        whole.longest = max(whole.longest, row.longest)
        whole.memory = max(whole.memory, row.memory)
    heads = ("kind", "cases", *GOOD, *BAD, "longest", "by seed", "memory")
    table = [heads, *(_cells(*item) for item in rows.items()), _cells("all", whole)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )


def _cells(kind: str, row: Row) -> tuple[str, ...]:
    counts = (row.ends.total(), *(row.ends[end] for end in (*GOOD, *BAD)))
    return (
        kind,
        *(f"{count:,}" for count in counts),
        f"{row.longest[0]:.1f} s",
        str(row.longest[1]),
        f"{row.memory / 2**20:,.0f} MiB",
    )
