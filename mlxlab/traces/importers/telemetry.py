"""Imports the bodies that Claude Code writes for OpenTelemetry.

``OTEL_LOG_RAW_API_BODIES=file:FOLDER`` (with ``CLAUDE_CODE_ENABLE_TELEMETRY=1`` and a
logs exporter) fills a folder with ``ID.request.json`` and ``ID.response.json``; a line
of ``index.jsonl`` names both once an answer is complete. Measured with 2.1.330, a
request is as on the wire, those on the side included, but for this:

- thinking is replaced by ``<REDACTED>``, in answers too; signatures stay. Requests
  with such blocks are counted;
- ``betas`` stand in the body; here they are the header ``anthropic-beta``;
- a client that ends may leave its last answer's body half written; the request stands
  without it then, and is counted;
- no other headers. The session stands in ``metadata``. A sub-agent has no id; the
  suffix of the version in its attribution block, which no other agent of the session
  has, stands for it.

The index tells when an answer ended. When a request arrived is told by its file's
time; where that is later than the answer's, because files were copied, the answer's is
taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxlab.traces.importers.claude_code.records import parse_time
from mlxlab.traces.importers.files import (
    Source,
    bytes_bar,
    find_sources,
    read_document,
    read_records,
)
from mlxlab.traces.importers.pool import Pool
from mlxlab.traces.importers.selection import EVERYTHING, Selection, assemble
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.schema import Json
from mlxlab.traces.trace import Exchange, Response, Trace

__all__ = ["import_telemetry", "is_telemetry"]

_REQUEST, _RESPONSE, _INDEX = ".request.json", ".response.json", "index.jsonl"
_REDACTED = "<REDACTED>"
_SUBAGENT = re.compile(
    r"x-anthropic-billing-header:.*cc_version=[\d.]+\.(\w+);.*cc_is_subagent=true"
)


@dataclass(frozen=True, slots=True)
class _Indexed:
    """A line of the index, as far as it could be read."""

    t: float
    session: str
    source: str
    response: str


def import_telemetry(
    path: Path, selection: Selection = EVERYTHING, *, progress: bool = True
) -> Trace:
    """Read a folder of bodies.

    Args:
        path: the folder.
        selection: what of it is wanted.
        progress: whether to show a bar.

    Raises:
        TraceError: ``path`` cannot be read, or holds no request.
    """
    tally = Tally()
    answers = {s.path: s for s in find_sources(path, _RESPONSE, tally)}
    index = dict(_index(path, tally))
    requests = find_sources(path, _REQUEST, tally)
    pool = Pool(tally)
    exchanges = []
    with bytes_bar(requests, progress) as bar:
        for source in requests:
            body = read_document(source, tally)
            bar.update(source.size)
            if body is None:
                continue
            if not isinstance(body.get("messages"), list):
                tally.name("request whose body was withheld skipped", str(source))
                continue
            line = index.get(source.path)
            if line is None:
                tally.add("request without an answer, dated by its file")
            answer = answers.get(source.path.parent / line.response) if line else None
            message = read_document(answer, tally) if answer else None
            exchanges.append(_exchange(source, pool.shared(body), line, message, tally))
    return assemble(path.stem, exchanges, selection, tally, "telemetry")


def is_telemetry(path: Path) -> bool:
    """Whether a folder holds bodies of requests."""
    return path.is_dir() and bool(find_sources(path, _REQUEST, Tally()))


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
