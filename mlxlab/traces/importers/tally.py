"""What an import leaves out or changes, and equal parts of requests as one object."""

from __future__ import annotations

import logging
from collections import Counter

from mlxlab.traces.dedup import LISTS
from mlxlab.traces.redaction import redacted
from mlxlab.traces.schema import Json, body_hash

__all__ = ["Interner", "Tally"]

log = logging.getLogger(__name__)

#: Places logged as warnings for each reason; further ones are logged as information.
_LOUD_PLACES = 10


class Tally:
    """Counts of what was left out or changed.

    Attributes:
        counts: how often, by reason; the reason says how each case was handled.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, times: int = 1) -> None:
        """Count cases without logging where they are."""
        self.counts[reason] += times

    def name(self, reason: str, place: str) -> None:
        """Count one case and log its place: a file, or ``file:line``."""
        self.counts[reason] += 1
        level = logging.WARNING if self.counts[reason] <= _LOUD_PLACES else logging.INFO
        log.log(level, "%s: %s", place, reason)

    def cleaned(self, value: Json) -> Json:
        """``value`` without secrets, which are counted."""
        clean, found = redacted(value)
        if found:
            self.add("secret replaced", found)
        return clean


class Interner:
    """Keeps one object, without secrets, for equal parts of several requests.

    Each request of a session repeats the system blocks, tools and messages of the one
    before it.

    Args:
        tally: counts the secrets.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._parts: dict[str, Json] = {}

    def intern(self, body: dict[str, Json]) -> dict[str, Json]:
        """Return ``body`` without secrets, made of known parts where they are equal."""
        return {
            key: [self._part(item) for item in value]
            if key in LISTS and isinstance(value, list)
            else self._tally.cleaned(value)
            for key, value in body.items()
        }

    def _part(self, item: Json) -> Json:
        name = body_hash(item)
        if name not in self._parts:
            self._parts[name] = self._tally.cleaned(item)
        return self._parts[name]
