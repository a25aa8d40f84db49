"""Fills a server's cache with the beginnings of recorded sessions."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Self

from mlxlab.errors import RequestError, TraceError
from mlxlab.prompt import Role
from mlxlab.rendering.messages import parse_request
from mlxlab.rendering.rules import RULES, canonicalize
from mlxlab.traces.open import open_one
from mlxlab.traces.recording.latest import LATEST, find_latest
from mlxlab.traces.trace import SESSION_HEADER, Trace

if TYPE_CHECKING:
    import httpx

__all__ = ["WarmUp", "find_beginnings"]

log = logging.getLogger(__name__)

#: The session of these requests in a recording.
_SESSION = "warm-up"
#: Answers that found no room are asked for again after this many seconds.
_PAUSE_S = 10.0
_TRIES = 20
_BUSY = 529
#: They say who sent a request and how its answer comes, and do not change its prompt.
_OMITTED = ("stream", "metadata", "max_tokens")


def find_beginnings(trace: Trace) -> list[dict[str, Any]]:
    """Return a request for each system text with its tools, the most frequent first.

    It is the first request of the latest session or sub-agent that begins so.

    Args:
        trace: of recorded sessions.

    Raises:
        TraceError: no request has system text or tools.
    """
    found: dict[Hashable, dict[tuple[str, str], dict[str, Any]]] = {}
    for exchange in trace.inference:
        body = exchange.body
        if body is not None and (key := _begins(body)) is not None:
            first = found.setdefault(key, {})
            first.setdefault((exchange.session, exchange.agent), body)
    if not found:
        raise TraceError(
            f"trace {trace.name}: no request with system text or tools, so sessions "
            "begin with nothing in common; give another trace"
        )
    ranked = sorted(found.values(), key=len, reverse=True)
    return [_without_answer(list(first.values())[-1]) for first in ranked]


def _begins(body: Mapping[str, Any]) -> Hashable | None:
    """Return what a prompt begins with; None if that is nothing."""
    try:
        conversation = canonicalize(parse_request(body, "request"), RULES)
    except RequestError:
        return None
    texts = tuple(p.text for p in conversation.system if p.role is Role.SYSTEM)
    tools = tuple(
        (tool.name, tool.description, json.dumps(tool.input_schema, sort_keys=True))
        for tool in conversation.tools
    )
    return (body.get("model"), texts, tools) if texts or tools else None


def _without_answer(body: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in body.items() if key not in _OMITTED}
    return {**kept, "max_tokens": 0}


class WarmUp:
    """Sends requests without answers, one after the other, from a thread of its own.

    The server computes them while nothing else is asked, pins them, and records them
    like those of any client.

    Args:
        trace: of recorded sessions.

    Attributes:
        done: requests that were answered.
        refused: requests that were not.
        computed: tokens that were computed for them.

    Raises:
        TraceError: see :func:`find_beginnings`.
    """

    def __init__(self, trace: Trace) -> None:
        self._bodies = find_beginnings(trace)
        self._stopped = Event()
        self.done = 0
        self.refused = 0
        self.computed = 0

    @classmethod
    def of(cls, trace: str | Path | Trace) -> Self:
        """Read the trace: by name or path, or ``latest`` for the latest recording.

        Raises:
            TraceError: it cannot be read, or see :class:`WarmUp`.
        """
        return cls(open_one(find_latest() if trace == LATEST else trace))

    def start(self, url: str, token: str) -> None:
        """Begin to send the requests to a server that runs."""
        Thread(target=self._run, args=(url, token), daemon=True).start()

    def stop(self) -> None:
        """Send no more requests."""
        self._stopped.set()

    def __str__(self) -> str:
        refused = f", {self.refused} refused" if self.refused else ""
        return (
            f"{self.done} of {len(self._bodies)} beginnings warm{refused}, "
            f"{self.computed:,} tokens computed"
        )

    def _run(self, url: str, token: str) -> None:
        import httpx  # a tenth of a second that other servers need not wait for

        headers = {"x-api-key": token, SESSION_HEADER: _SESSION}
        with httpx.Client(base_url=url, headers=headers, timeout=None) as client:
            for body in self._bodies:
                try:
                    self._send(client, body)
                except httpx.HTTPError as error:
                    if not self._stopped.is_set():
                        log.warning("the warm-up ends: %s", error)
                    return

    def _send(self, client: httpx.Client, body: Mapping[str, Any]) -> None:
        """Send a request, again if the server was too busy."""
        for _ in range(_TRIES):
            answer = client.post("/v1/messages", json=body)
            if answer.status_code != _BUSY or self._stopped.wait(_PAUSE_S):
                break
        if answer.is_success:
            usage = answer.json()["usage"]
            self.computed += usage["input_tokens"]
            self.computed += usage["cache_creation_input_tokens"]
            self.done += 1
        else:
            self.refused += 1
            log.warning(
                "a beginning is not warm: %s", answer.json()["error"]["message"]
            )
