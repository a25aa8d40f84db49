"""Request and response bodies that Claude Code writes for OpenTelemetry.

``OTEL_LOG_RAW_API_BODIES=file:FOLDER`` (with ``CLAUDE_CODE_ENABLE_TELEMETRY=1`` and a
logs exporter) fills a folder with ``ID.request.json`` and ``ID.response.json``. Once an
answer is complete, a line of ``index.jsonl`` names both files. Measured with 2.1.330,
each request is as on the wire, side requests included, with these differences:

- Thinking is replaced by ``<REDACTED>``, in answers too; signatures stay. Requests with
  such blocks are counted.
- ``betas`` are in the body. The import moves them to the header ``anthropic-beta``.
- A client that ends may leave its last answer half written. The import then keeps the
  request without an answer, and counts it.
- Other headers are missing. The session id is in ``metadata``. A sub-agent has no id;
  the version suffix in its attribution block stands for it, because no other agent of
  the session has that suffix.

The index says when an answer ended. A request arrived when its file was written. If
that is later than the answer, because files were copied, the answer's time is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxlab.traces.importers.base import IMPORTERS, Importer, Selection
from mlxlab.traces.importers.claude_code.records import parse_time
from mlxlab.traces.importers.files import (
    Source,
    bytes_bar,
    find_sources,
    read_document,
    read_records,
)
from mlxlab.traces.importers.tally import Interner, Tally
from mlxlab.traces.schema import Json
from mlxlab.traces.trace import Exchange, Response

__all__ = ["Telemetry"]

_REQUEST, _RESPONSE, _INDEX = ".request.json", ".response.json", "index.jsonl"
_REDACTED = "<REDACTED>"
_SUBAGENT = re.compile(
    r"x-anthropic-billing-header:.*cc_version=[\d.]+\.(\w+);.*cc_is_subagent=true"
)


@dataclass(frozen=True, slots=True)
class _Indexed:
    """A line of the index; texts that are missing are empty."""

    t: float
    session: str
    source: str
    response: str


@IMPORTERS.register
class Telemetry(Importer):
    """A folder of bodies."""

    name = "telemetry"
    summary = "bodies that Claude Code writes with OTEL_LOG_RAW_API_BODIES=file:FOLDER"

    def recognizes(self, path: Path) -> bool:
        return path.is_dir() and bool(find_sources(path, _REQUEST, Tally()))

    def exchanges(
        self, path: Path, selection: Selection, tally: Tally, *, progress: bool
    ) -> Iterator[Exchange]:
        answers = {s.path: s for s in find_sources(path, _RESPONSE, tally)}
        index = dict(_index(path, tally))
        requests = find_sources(path, _REQUEST, tally)
        interner = Interner(tally)
        with bytes_bar(requests, progress) as bar:
            for source in requests:
                body = _request_body(source, tally)
                bar.update(source.size)
                if body is None:
                    continue
                line = index.get(source.path)
                if line is None:
                    tally.add("request without an answer, dated by its file")
                answer = line and answers.get(source.path.parent / line.response)
                message = read_document(answer, tally) if answer else None
                yield _exchange(source, interner.intern(body), line, message, tally)


def _request_body(source: Source, tally: Tally) -> dict[str, Json] | None:
    body = read_document(source, tally)
    if body is None or isinstance(body.get("messages"), list):
        return body
    tally.name("request whose body was withheld skipped", str(source))
    return None


def _index(path: Path, tally: Tally) -> Iterator[tuple[Path, _Indexed]]:
    for source in find_sources(path, _INDEX, tally):
        for place, line in read_records(source, tally):
            name = line.get("request_file")
            t = parse_time(line.get("timestamp"), float("nan"))
            if not isinstance(name, str) or t != t:
                tally.name("line of the index without file or time skipped", place)
                continue
            texts = (
                line.get(k) for k in ("session_id", "query_source", "response_file")
            )
            known = (text if isinstance(text, str) else "" for text in texts)
            yield source.path.parent / Path(name).name, _Indexed(t, *known)


def _exchange(
    source: Source,
    body: dict[str, Json],
    line: _Indexed | None,
    message: dict[str, Json] | None,
    tally: Tally,
) -> Exchange:
    if any(map(_is_redacted, body["messages"])):
        tally.add("request with its thinking redacted")
    t = min(source.changed, line.t) if line else source.changed
    return Exchange(
        0,
        t,
        "POST",
        "/v1/messages?beta=true",
        _headers(body, line),
        {key: value for key, value in body.items() if key != "betas"},
        Response(line.t, 200, 0.0, tally.cleaned(message))
        if line and message
        else None,
    )


def _headers(body: Mapping[str, Json], line: _Indexed | None) -> dict[str, str]:
    headers = {
        "x-claude-code-session-id": line.session if line else "",
        "x-claude-code-query-source": line.source if line else "",
        "x-claude-code-agent-id": _agent(body.get("system")),
    }
    betas = body.get("betas")
    if isinstance(betas, list):
        headers["anthropic-beta"] = ",".join(map(str, betas))
    return {name: value for name, value in headers.items() if value}


def _agent(system: Json) -> str:
    match system:
        case [{"text": str(text)}, *_]:
            found = _SUBAGENT.match(text)
            return found[1] if found else ""
    return ""


def _is_redacted(message: Json) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, list) and any(
        isinstance(block, dict)
        and _REDACTED in (block.get("thinking"), block.get("data"))
        for block in content
    )
