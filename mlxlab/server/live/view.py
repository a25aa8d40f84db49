"""The view model of a server: a snapshot, and then what has changed since.

It needs no browser. Panel, page and terminal show it.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from itertools import islice
from threading import Lock
from typing import Any

from mlxlab.server.event_log import Event, EventLog, Stage
from mlxlab.server.live.losses import Losses
from mlxlab.server.live.rows import Row

__all__ = ["INTERVAL_S", "View"]

#: Seconds between two looks at a view: four messages a second.
INTERVAL_S = 0.25
#: Requests that are shown, and first tokens that percentiles are taken of.
_ROWS = 200
_TIMED = 1000


class View:
    """What a server's users see of it, from the events of its requests.

    Readers ask for what has changed since a version, so that slow ones get fewer and
    larger changes. Memory is bounded, however many requests come. Thread-safe.

    Args:
        log: the events.
        describe: returns further parts, JSON values by name: ``server`` with
            ``strategy`` and ``rules``, and ``meters``.
        kept: most requests.
    """

    def __init__(
        self,
        log: EventLog,
        describe: Callable[[], Mapping[str, Any]],
        kept: int = _ROWS,
    ) -> None:
        self._log = log
        self._describe = describe
        self._kept = kept
        self._lock = Lock()
        self._version = self._number = 0
        self._rows: OrderedDict[int, Row] = OrderedDict()
        self._removed = 0
        self._totals = {"requests": 0, "prompt_tokens": 0, "reused_tokens": 0}
        self._ttfts: deque[float] = deque(maxlen=_TIMED)
        self._losses = Losses()
        #: Each part of the state, with the version that it is of.
        self._parts: dict[str, tuple[int, Any]] = {}

    def since(self, version: int = 0) -> dict[str, Any]:
        """Return what has changed behind a version; all that is shown behind 0.

        Returns:
            Empty without a change; else JSON values: ``version``, ``whole`` (whether it
            is a snapshot), ``now`` (Unix seconds), ``first`` (the oldest request that
            is still shown), ``rows`` (the changed ones), and, where they have changed,
            ``server``, ``meters``, ``totals`` and ``losses``.
        """
        with self._lock:
            self._read()
            if version >= self._version:
                return {}
            rows = [row for row in self._rows.values() if row.version > version]
            parts = self._parts.items()
            return {
                "version": self._version,
                "whole": version == 0,
                "now": time.time(),
                "first": next(iter(self._rows), self._removed + 1),
                "rows": [row.to_dict() for row in rows],
                **{name: part for name, (at, part) in parts if at > version},
            }

    def rows(self) -> list[Row]:
        """Return the latest requests as they are now, oldest first."""
        with self._lock:
            self._read()
            return list(self._rows.values())

    def _read(self) -> None:
        """Take in what has happened since the last look."""
        following = self._version + 1
        for event in self._log.since(self._number):
            if event.number > self._number + 1:
                self._skip(event.request)
            self._number = event.number
            self._take(event, following)
            self._version = following
        parts = dict(self._describe())
        parts["totals"] = self._summarize()
        server = parts["server"]
        rules = [rule["name"] for rule in server["rules"] if rule["is_on"]]
        parts["losses"] = self._losses.to_dict(rules, server["strategy"])
        for name, part in parts.items():
            if name not in self._parts or self._parts[name][1] != part:
                self._parts[name] = following, part
                self._version = following

    def _skip(self, request: int) -> None:
        """Remove the requests whose end may be among events that were not kept."""
        for row in list(self._rows.values()):
            if not row.is_over and row.request != request:
                self._remove(row.request)

    def _remove(self, request: int) -> None:
        del self._rows[request]
        self._removed = max(self._removed, request)

    def _take(self, event: Event, version: int) -> None:
        row = self._rows.get(event.request)
        if row is None and event.request > self._removed:
            row = self._rows[event.request] = Row(event.request, event.t)
        if row is not None:
            row.take(event, version)
        if event.stage is Stage.ENDED:
            self._count(event.facts)
        elif event.stage is Stage.EXPLAINED:
            self._losses.add(event.facts, (row and row.reused_tokens) or 0)
        for oldest in list(islice(self._rows, max(len(self._rows) - self._kept, 0))):
            self._remove(oldest)

    def _count(self, facts: Mapping[str, Any]) -> None:
        if "prompt_tokens" not in facts:
            return  # refused before it was rendered
        self._totals["requests"] += 1
        for name in ("prompt_tokens", "reused_tokens"):
            self._totals[name] += facts[name]
        if facts.get("ttft_s") is not None:
            self._ttfts.append(facts["ttft_s"])

    def _summarize(self) -> dict[str, Any]:
        open_ = [row for row in self._rows.values() if not row.is_over]
        queued = sum(row.stage in (Stage.ARRIVED, Stage.QUEUED) for row in open_)
        ordered = sorted(self._ttfts)
        timed = {
            f"ttft_p{percent}_s": ordered[len(ordered) * percent // 100]
            for percent in (50, 95)
            if ordered
        }
        numbers = {"running": len(open_) - queued, "queued": queued}
        return {**self._totals, **numbers, **timed}
