"""A trace: requests of clients and their answers, read from a file of lines."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path

from mlxlab.content import open_content
from mlxlab.errors import TraceError
from mlxlab.printable import encodable
from mlxlab.traces.completeness import Completeness, measure_completeness
from mlxlab.traces.dedup import LISTS, Parts, join
from mlxlab.traces.schema import (
    VERSION,
    BodyLine,
    Configuration,
    Generated,
    HeaderLine,
    Json,
    Line,
    Order,
    RequestLine,
    ResponseLine,
    Timing,
    Told,
    body_hash,
    decode,
    encode,
    parse_line,
)

__all__ = [
    "BRANCH_HEADER",
    "CWD_HEADER",
    "PARTIAL_LINE",
    "SESSION_HEADER",
    "START_HEADER",
    "USER_AGENT",
    "Exchange",
    "Response",
    "Trace",
    "agent_of",
    "read_trace",
    "session_of",
]

#: A reason in :attr:`Trace.skipped`: the last line is incomplete after a crash.
PARTIAL_LINE = "partial last line skipped"

#: In it a client names the session of a request.
SESSION_HEADER = "x-claude-code-session-id"
_AGENT_HEADER = "x-claude-code-agent-id"
#: In it a client names its version.
USER_AGENT = "user-agent"
#: Folder, branch and start of the client. No client sends them: they stand for what a
#: history says of a request whose system text it lacks.
CWD_HEADER = "x-claude-code-cwd"
BRANCH_HEADER = "x-claude-code-git-branch"
START_HEADER = "x-claude-code-start"


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; see :class:`mlxlab.traces.schema.ResponseLine` for the fields."""

    t: float
    status: int
    first_byte_s: float
    message: dict[str, Json] | None = None
    script: bool = False
    generated: Generated | None = None
    configuration: Configuration | None = None
    order: Order | None = None
    told: Told | None = None
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer, if one was recorded.

    Attributes:
        id: unique in its trace.
        t: arrival, Unix seconds.
        headers: the headers that traces keep, names in lower case.
        body: the request as sent, None if it was not a JSON object. Equal blocks of
            several requests may be one object: do not change them.
        response: the answer, None if there is none.
    """

    id: int
    t: float
    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Json] | None
    response: Response | None = None

    @property
    def is_inference(self) -> bool:
        """Whether it asks for an answer: a POST to a path that ends in /v1/messages."""
        path, _, _ = self.path.partition("?")
        return self.method == "POST" and path.endswith("/v1/messages")

    @property
    def session(self) -> str:
        """The first 8 characters of the session id, ``session`` if there is none."""
        return session_of(self.headers, self.body)

    @property
    def agent(self) -> str:
        """The sub-agent's id, empty for the main loop."""
        return agent_of(self.headers)

    @property
    def conversation(self) -> tuple[str, str]:
        """Session and agent: whose turn it is."""
        return self.session, self.agent


# Without slots, because cached_property needs a dict.
@dataclass(frozen=True, eq=False)
class Trace:
    """Exchanges in order of arrival.

    Attributes:
        name: the file's name without its ending.
        exchanges: the exchanges; each has an id of its own.
        header: recorder, time, and notes on provenance.

    Raises:
        TraceError: two exchanges have one id.
    """

    name: str
    exchanges: tuple[Exchange, ...]
    header: HeaderLine = field(default_factory=HeaderLine)

    def __post_init__(self) -> None:
        if len({e.id for e in self.exchanges}) < len(self.exchanges):
            raise TraceError(f"{self.name}: an id is used twice; number the exchanges")

    def __len__(self) -> int:
        return len(self.exchanges)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self.exchanges)

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many parts of the source were left out or changed, by reason."""
        return self.header.skipped

    @cached_property
    def completeness(self) -> Completeness | None:
        """How much of the prompts is there; None if the source kept them whole."""
        return self.header.filled or measure_completeness(self)

    @property
    def inference(self) -> tuple[Exchange, ...]:
        """The exchanges that ask for an answer."""
        return tuple(e for e in self.exchanges if e.is_inference)

    @property
    def sessions(self) -> tuple[str, ...]:
        """Session ids in order of appearance."""
        return tuple(dict.fromkeys(e.session for e in self.exchanges))

    @property
    def span_s(self) -> float:
        """Seconds between the first and the last arrival."""
        return self.exchanges[-1].t - self.exchanges[0].t if self.exchanges else 0.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all exchanges; the layout of the file does not matter."""
        digest = hashlib.sha256()
        for exchange in self.exchanges:
            digest.update(encode(_content(exchange)) + b"\n")
        return digest.hexdigest()

    def __repr__(self) -> str:
        found = self.completeness
        return (f"{found.line}\n" if found else "") + (
            f"Trace({self.name!r}, {len(self.inference)} inference requests of "
            f"{len(self)}, {len(self.sessions)} sessions, {self.span_s:.1f} s)"
        )

    def _repr_html_(self) -> str:
        heads = ("session", "agents", "requests", "inference", "seconds")
        rows = [heads, *map(self._row, self.sessions)]
        found = self.completeness
        line = f"<p>{escape(found.line)}</p>" if found else ""
        return line + _table(f"{self.name}: {len(self)} requests", rows)

    def _row(self, session: str) -> tuple[str, ...]:
        own = [e for e in self.exchanges if e.session == session]
        agents = {e.agent for e in own if e.agent}
        inference = sum(e.is_inference for e in own)
        counts = (len(agents), len(own), inference)
        return (session, *map(str, counts), f"{own[-1].t - own[0].t:.1f}")


def read_trace(path: str | Path) -> Trace:
    """Read a trace file.

    An incomplete last line, left by a crash, is skipped and counted in ``skipped``.

    Args:
        path: a trace file, as ``mlxlab record`` and ``mlxlab import-trace`` write it.

    Raises:
        TraceError: not a trace, another version, or a damaged line; the message names
            file and line.
    """
    path = Path(path)
    if path.is_dir():
        raise TraceError(f"{path}: a folder; give a trace file (.jsonl)")
    try:
        with open_content(path) as lines:
            return _Reader(path).read(lines)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a trace file") from None


class _Reader:
    """Reads lines into exchanges; keeps bodies and lists for later lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self.header: HeaderLine | None = None
        self.bodies: dict[str, Json] = {}
        self.lists: dict[int, dict[str, list[str]]] = {}
        self.requests: dict[int, RequestLine] = {}
        self.responses: dict[int, Response] = {}
        self.wire: dict[int, dict[str, Json] | None] = {}
        self.skipped: Counter[str] = Counter()

    def read(self, lines: Iterable[bytes]) -> Trace:
        for self.number, data in enumerate(lines, start=1):
            self._read_line(data)
        if self.header is None:
            raise self._error("empty", "a first line of kind 'trace'")
        exchanges = sorted(map(self._exchange, self.requests), key=lambda e: e.t)
        header = self.header.model_copy(update={"skipped": dict(self.skipped)})
        return Trace(encodable(self.path.stem), tuple(exchanges), header)

    def _read_line(self, data: bytes) -> None:
        value = self._decoded(data)
        if value is None:
            return
        if self.header is None:
            self.header = self._header(value)
            self.skipped.update(self.header.skipped)
            return
        try:
            line = parse_line(value)
            self._store(line)
        except (ValueError, RecursionError) as error:
            raise self._error(str(error), f"lines of version {VERSION}") from None

    def _decoded(self, data: bytes) -> dict[str, Json] | None:
        try:
            value = decode(data)
        except RecursionError:
            raise self._error("nested too deeply", "JSON of moderate depth") from None
        except ValueError as error:
            if self.header is not None and not data.endswith(b"\n"):
                self.skipped[PARTIAL_LINE] += 1
                return None
            problem = "binary data" if b"\0" in data else f"not JSON ({error})"
            raise self._error(problem, "one JSON object per line") from None
        if not isinstance(value, dict):
            raise self._error(f"a {type(value).__name__}", "one JSON object per line")
        return value

    def _header(self, value: dict[str, Json]) -> HeaderLine:
        if value.get("kind") != "trace":
            raise self._error("not a trace", "a first line of kind 'trace'")
        version = value.get("version")
        if version != VERSION:
            raise self._error(f"version {version!r}", f"version {VERSION}")
        try:
            return HeaderLine.model_validate(value)
        except ValueError:
            raise self._error("a damaged first line", "recorder, created") from None

    def _store(self, line: Line) -> None:
        match line:
            case HeaderLine():
                raise ValueError("a second line of kind 'trace'")
            case BodyLine():
                self._store_body(line)
            case RequestLine():
                self._store_request(line)
            case ResponseLine():
                self._store_response(line)

    def _store_body(self, line: BodyLine) -> None:
        found = body_hash(line.body)
        if found != line.hash:
            raise ValueError(f"body {line.hash} hashes to {found}: it was changed")
        self.bodies[line.hash] = line.body

    def _store_request(self, line: RequestLine) -> None:
        if line.id in self.requests:
            raise ValueError(f"request id {line.id} is used twice")
        self.wire[line.id] = self._restored(line)
        self.requests[line.id] = line

    def _store_response(self, line: ResponseLine) -> None:
        if line.id not in self.requests:
            raise ValueError(f"a response to request {line.id}, which is missing")
        if line.id in self.responses:
            raise ValueError(f"a second response to request {line.id}")
        self.responses[line.id] = Response(
            line.t,
            line.status,
            line.first_byte_s,
            line.message,
            line.script,
            line.generated,
            line.configuration,
            line.order,
            line.told,
            line.timing,
        )

    def _restored(self, line: RequestLine) -> dict[str, Json] | None:
        if line.params is None:
            return None
        self.lists[line.id] = {}
        lists = {
            key: self._bodies(line.id, key, getattr(line, key))
            for key in LISTS
            if getattr(line, key) is not None
        }
        try:
            return join(Parts(line.params, lists, line.cache_control))
        except (LookupError, TypeError):
            raise ValueError("cache_control: a path without a block") from None

    def _bodies(self, id: int, key: str, items: str | Sequence[Json]) -> Json:
        if isinstance(items, str):
            return self._body(items)
        hashes: list[str] = []
        for item in items:
            hashes += [item] if isinstance(item, str) else self._run(key, *item)
        self.lists[id][key] = hashes
        return [self._body(name) for name in hashes]

    def _run(self, key: str, id: int, count: int) -> list[str]:
        earlier = self.lists.get(id, {}).get(key, [])
        if count > len(earlier):
            raise ValueError(f"{key}: request {id} has no {count} items to repeat")
        return earlier[:count]

    def _body(self, name: str) -> Json:
        if name not in self.bodies:
            raise ValueError(f"body {name} is missing")
        return self.bodies[name]

    def _exchange(self, id: int) -> Exchange:
        line = self.requests[id]
        request = (line.method, line.path, line.headers, self.wire[id])
        return Exchange(line.id, line.t, *request, self.responses.get(id))

    def _error(self, problem: str, accepted: str) -> TraceError:
        return TraceError(f"{self.path}:{self.number}: {problem}; accepted: {accepted}")


def session_of(headers: Mapping[str, str], body: Mapping[str, Json] | None) -> str:
    """Return the first 8 characters of a session id, ``session`` if there is none.

    Args:
        headers: of the request, with names in lower case.
        body: of the request.
    """
    named = headers.get(SESSION_HEADER) or _session_of_user(body)
    return encodable(named[:8]) or "session"


def agent_of(headers: Mapping[str, str]) -> str:
    """Return the id of the sub-agent that asks, empty for the main loop."""
    return encodable(headers.get(_AGENT_HEADER, ""))


def _session_of_user(body: Mapping[str, Json] | None) -> str:
    metadata = (body or {}).get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    try:
        return str(json.loads(user)["session_id"]) if isinstance(user, str) else ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _content(exchange: Exchange) -> list[Json]:
    answer = exchange.response
    request = [exchange.id, exchange.t, exchange.method, exchange.path]
    response = answer and [answer.t, answer.status, answer.first_byte_s, answer.message]
    if answer and response and answer.generated:
        response.append(answer.generated.to_json())
    # The order of a request's own keys is free, that within its values is not.
    body = exchange.body and dict(sorted(exchange.body.items()))
    return [*request, dict(sorted(exchange.headers.items())), body, response]


def _table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><caption>{escape(caption)}</caption>{lines}</table>"
