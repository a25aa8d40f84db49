"""Makes equal parts of several requests one object, as each repeats those before it.

Knows no format.
"""

from __future__ import annotations

from mlxlab.traces.dedup import LISTS
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.schema import Json, body_hash

__all__ = ["Pool"]


class Pool:
    """The system blocks, tools and messages met so far, without their secrets.

    Args:
        tally: counts the secrets.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._met: dict[str, Json] = {}

    def shared(self, body: dict[str, Json]) -> dict[str, Json]:
        """``body`` without secrets, made of what was met before where it can be."""
        return {
            key: [self._one(item) for item in value]
            if key in LISTS and isinstance(value, list)
            else self._tally.cleaned(value)
            for key, value in body.items()
        }

    def _one(self, item: Json) -> Json:
        name = body_hash(item)
        if name not in self._met:
            self._met[name] = self._tally.cleaned(item)
        return self._met[name]
