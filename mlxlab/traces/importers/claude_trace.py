"""Logs of claude-trace: ``.claude-trace/log-*.jsonl``.

A line is ``{request: {timestamp, method, url, headers, body}, response: {timestamp,
status_code, headers, body | body_raw}}``. An unanswered request has a null response.
``body_raw`` is text: either the events of a streamed answer, which are put together, or
a body that the tool did not parse. The log does not say when an answer began, so
``first_byte_s`` is 0. By default the tool leaves out short conversations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlxlab.traces.importers.base import IMPORTERS, Importer, Selection
from mlxlab.traces.importers.files import (
    bytes_bar,
    find_sources,
    peek,
    read_records,
)
from mlxlab.traces.importers.tally import Interner, Tally
from mlxlab.traces.redaction import kept_headers, kept_path
from mlxlab.traces.schema import Json, Seconds, decode
from mlxlab.traces.trace import Exchange, Response
from mlxlab.web.sse import MessageAccumulator

__all__ = ["ClaudeTrace"]


class _Recorded(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, frozen=True)

    timestamp: Seconds
    body: Json = None


class _Request(_Recorded):
    method: str
    url: str
    headers: dict[str, Json] = {}


class _Response(_Recorded):
    status_code: Annotated[int, Field(strict=True, ge=100, le=999)]
    body_raw: str | None = None


class _Pair(BaseModel):
    request: _Request
    response: _Response | None = None


@IMPORTERS.register
class ClaudeTrace(Importer):
    """A log, or a folder of logs."""

    name = "claude-trace"
    summary = "logs of claude-trace, .claude-trace/log-*.jsonl"

    def recognizes(self, path: Path) -> bool:
        return any(
            isinstance(record.get("request"), dict) and "url" in record["request"]
            for source in find_sources(path, ".jsonl", Tally())[:1]
            for record in peek(source.path)[:1]
        )

    def exchanges(
        self, path: Path, selection: Selection, tally: Tally, *, progress: bool
    ) -> Iterator[Exchange]:
        sources = find_sources(path, ".jsonl", tally)
        interner = Interner(tally)
        with bytes_bar(sources, progress) as bar:
            for source in sources:
                for place, value in read_records(source, tally, bar):
                    yield from _exchange(value, place, interner, tally)


def _exchange(
    value: dict[str, Json], place: str, interner: Interner, tally: Tally
) -> Iterator[Exchange]:
    try:
        pair = _Pair.model_validate(value)
        url = urlsplit(pair.request.url)
    except (ValidationError, ValueError):
        tally.name("line without a recorded request skipped", place)
        return
    request, response = pair.request, pair.response
    body = _json(request.body)
    yield Exchange(
        0,
        request.timestamp,
        request.method.upper(),
        kept_path(url._replace(scheme="", netloc="", fragment="").geturl()),
        kept_headers({k: str(v) for k, v in request.headers.items()}),
        None if body is None else interner.intern(body),
        None if response is None else _answer(response, tally),
    )


def _answer(response: _Response, tally: Tally) -> Response:
    message = _json(response.body)
    if message is None and response.body_raw:
        message = _json(response.body_raw) or _streamed(response.body_raw)
    if message is None:
        tally.add("answer without a message")
    return Response(
        response.timestamp, response.status_code, 0.0, tally.cleaned(message)
    )


def _streamed(events: str) -> dict[str, Json] | None:
    answer = MessageAccumulator()
    answer.feed(events.encode(errors="replace") + b"\n\n")
    return answer.message


def _json(value: Json) -> dict[str, Json] | None:
    """Return an object, decoded if it is text; None for anything else."""
    try:
        value = decode(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
