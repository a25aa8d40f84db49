"""Counts what an import leaves out or changes, by reason, and names the places.

Knows no format.
"""

from __future__ import annotations

import logging
from collections import Counter

from mlxlab.traces.redaction import redacted
from mlxlab.traces.schema import Json

__all__ = ["Tally"]

log = logging.getLogger(__name__)

#: Places named loudly for each reason; the others are logged more quietly.
_NAMED = 10


class Tally:
    """What was left out or changed.

    Attributes:
        counts: how often, by reason; the reason says what was done about it.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, times: int = 1) -> None:
        """Count something that has no place worth naming."""
        self.counts[reason] += times

    def name(self, reason: str, place: str) -> None:
        """Count something and log where it is: a file, or ``file:line``."""
        self.counts[reason] += 1
        level = logging.WARNING if self.counts[reason] <= _NAMED else logging.INFO
        log.log(level, "%s: %s", place, reason)

    def cleaned(self, value: Json) -> Json:
        """``value`` without secrets, which are counted."""
        clean, found = redacted(value)
        if found:
            self.add("secret replaced", found)
        return clean
