"""One file of Claude Code's history: its records, and the requests in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from pydantic import ValidationError
from tqdm.auto import tqdm

from mlxlab.traces.dedup import Parts, join
from mlxlab.traces.importers.claude_code.conversation import (
    Conversation,
    Origin,
    Turn,
    join_answer,
)
from mlxlab.traces.importers.claude_code.hashes import (
    MessageStore,
    as_blocks,
    hash_value,
)
from mlxlab.traces.importers.claude_code.records import (
    IGNORED,
    BlobRecord,
    RequestRecord,
    ShapeRecord,
    TurnRecord,
    parse_time,
    read_attachment,
)
from mlxlab.traces.importers.files import Source, read_records
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.schema import Json
from mlxlab.traces.trace import Exchange, Response

__all__ = ["FoundRequest", "SessionFile", "Shapes"]

Shapes: TypeAlias = dict[str, dict[str, Json]]
"""System blocks and tools by hash; many files share them."""


#: Written when a client ends, and at other times.
_LAST_RECORD = "last-prompt"


@dataclass(frozen=True, slots=True)
class FoundRequest:
    """A request found in a file.

    Attributes:
        exchange: the request and its answer, with any id.
        key: unique among all requests; copies of a request in other files share it.
        answer: id of the message that answers it, empty if unanswered.
        is_logged: True if the client logged the request, False if it was made from the
            conversation.
    """

    exchange: Exchange
    key: str
    answer: str
    is_logged: bool


@dataclass(frozen=True, slots=True)
class _LoggedRequest:
    """A request record with its time and place in the file."""

    record: RequestRecord
    t: float
    place: str


class SessionFile:
    """A transcript of a session or of one of its sub-agents.

    Args:
        source: the file.
        shapes: the shapes of other files; those of this file are added.
        tally: counts records that cannot be used.
    """

    def __init__(self, source: Source, shapes: Shapes, tally: Tally) -> None:
        self._source = source
        self._shapes = shapes
        self._tally = tally
        self._messages = MessageStore(tally.cleaned)
        self._conversation = Conversation()
        self._logged: list[_LoggedRequest] = []
        #: Hashes of the messages of each request.
        self._hashes: dict[str, tuple[str, ...]] = {}
        #: Request id to the id of its answer.
        self._answers: dict[str, str] = {}
        self._t = source.changed
        self._starts = 0
        self._has_ended = False

    def requests(self, bar: tqdm[NoReturn] | None = None) -> list[FoundRequest]:
        """Read the file and rebuild its requests."""
        for place, value in read_records(self._source, self._tally, bar):
            try:
                self._add(value, place)
            except (ValidationError, RecursionError):
                self._tally.name("record that lacks something skipped", place)
        logged = [found for line in self._logged for found in self._from_log(line)]
        answered = {request.answer for request in logged}
        return [*logged, *self._from_conversation(answered)]

    def _add(self, value: dict[str, Json], place: str) -> None:
        self._t = parse_time(value.get("timestamp"), self._t)
        match value.get("type"):
            case "api-request-shape":
                self._add_shape(ShapeRecord.model_validate(value), place)
            case "api-request-blob":
                self._add_blob(BlobRecord.model_validate(value), place)
            case "api-request":
                self._add_request(RequestRecord.model_validate(value), place)
            case "user" | "assistant" as role:
                self._add_turn(TurnRecord.model_validate(value), role)
            case "attachment":
                self._add_attachment(value)
            case kind:
                self._has_ended |= kind == _LAST_RECORD
                if not (isinstance(kind, str) and kind in IGNORED):
                    self._tally.add("record of an unknown kind skipped")
                self._link(value)

    def _add_shape(self, record: ShapeRecord, place: str) -> None:
        if record.shape_hash not in self._shapes:
            if hash_value(record.shape) != record.shape_hash:
                self._tally.name("system and tools unlike their hash", place)
            self._shapes[record.shape_hash] = self._tally.cleaned(record.shape)

    def _add_blob(self, record: BlobRecord, place: str) -> None:
        if not self._messages.store(record.hash, record.message):
            self._tally.name("message unlike its hash", place)

    def _add_request(self, record: RequestRecord, place: str) -> None:
        base = self._hashes.get(record.base, ())
        if record.keep > len(base):
            self._tally.name("request without the one it goes on from skipped", place)
            return
        self._hashes[record.id] = (*base[: record.keep], *record.tail)
        self._logged.append(_LoggedRequest(record, self._t, place))

    def _add_turn(self, record: TurnRecord, role: str) -> None:
        if record.is_synthetic:
            self._conversation.link(record.uuid, record.parent_uuid)
            return
        content = record.message.get("content", [])
        rest = {k: v for k, v in record.message.items() if k != "content"}
        self._note_start(role, content)
        turn = Turn(
            record.uuid,
            record.parent_uuid,
            role,
            self._tally.cleaned(rest),
            self._messages.add_record(role, record.answer, content),
            self._t,
            record.session_id or self._source.path.stem,
            record.agent_id,
            bool(record.is_sidechain),
            self._origin(record),
        )
        self._conversation.add(turn)
        if role == "assistant":
            self._note_answer(record, turn)

    def _link(self, value: dict[str, Json]) -> None:
        uuid, parent = value.get("uuid"), value.get("parentUuid")
        if isinstance(uuid, str) and isinstance(parent, str):
            self._conversation.link(uuid, parent)

    def _add_attachment(self, value: dict[str, Json]) -> None:
        """Add an attachment as the inline system message that it becomes."""
        uuid, parent = value.get("uuid"), value.get("parentUuid")
        text = self._tally.cleaned(read_attachment(value.get("attachment")))
        if not (text and isinstance(uuid, str) and isinstance(parent, str)):
            self._link(value)
            return
        block = {"type": "text", "text": text}
        turn = Turn(
            uuid, parent, "system", {}, [block], self._t, "", "", False, Origin()
        )
        self._conversation.add(turn)

    def _note_start(self, role: str, content: Json) -> None:
        """Count a new process: the client ended, and the user asks again."""
        is_result = any(
            isinstance(block, dict) and block.get("type") == "tool_result"
            for block in as_blocks(content)
        )
        self._starts += self._has_ended and role == "user" and not is_result
        self._has_ended = False

    def _origin(self, record: TurnRecord) -> Origin:
        named = (record.version, record.cwd, record.git_branch)
        version, cwd, branch = (
            self._tally.cleaned(text) if isinstance(text, str) else "" for text in named
        )
        return Origin(version, cwd, branch, self._starts)

    def _note_answer(self, record: TurnRecord, turn: Turn) -> None:
        if record.request_ref:
            self._answers[record.request_ref] = turn.answer
        elif self._logged and self._logged[-1].record.agent_id == record.agent_id:
            # Older records do not name their request: it is the latest one.
            self._answers.setdefault(self._logged[-1].record.id, turn.answer)

    def _from_log(self, line: _LoggedRequest) -> Iterator[FoundRequest]:
        record = line.record
        hashes = self._hashes[record.id]
        if record.shape_hash not in self._shapes:
            reason = "request without its system and tools skipped"
            self._tally.name(reason, line.place)
        elif not hashes or not all(name in self._messages for name in hashes):
            self._tally.name("request without all its messages skipped", line.place)
        else:
            if record.cut is not None or record.withheld:
                self._tally.add("request that the client logged without a part")
            answer = self._answers.get(record.id, "")
            exchange = _exchange(
                line.t,
                _headers(record, self._source),
                self._body(record, hashes, line.place),
                self._conversation.answers.get(answer, ()),
            )
            yield FoundRequest(exchange, record.id, answer, is_logged=True)

    def _body(
        self, record: RequestRecord, hashes: Sequence[str], place: str
    ) -> dict[str, Json]:
        marks = tuple((mark.path, mark.value) for mark in record.cache_control)
        marked = {
            path[1] for path, _ in marks if path[:1] == ("messages",) and path[2:]
        }
        messages = [
            self._messages.get(name, marked=i in marked)
            for i, name in enumerate(hashes)
        ]
        params = {key: v for key, v in record.params.items() if key != "betas"}
        lists = {**self._shapes[record.shape_hash], "messages": messages}
        parts = Parts(self._tally.cleaned(params), lists, marks)
        try:
            return join(parts)
        except (LookupError, TypeError):
            self._tally.name("cache marker without a block left out", place)
            return join(Parts(parts.params, lists, ()))

    def _from_conversation(self, answered: set[str]) -> Iterator[FoundRequest]:
        """Make requests for the answers that no logged request has."""
        for answer, turns in self._conversation.answers.items():
            if answer in answered:
                continue
            branch = self._conversation.ancestors(turns[0])
            messages = self._conversation.messages(branch)
            if not messages:
                self._tally.add("answer without a message before it skipped")
                continue
            model = turns[0].message.get("model")
            body = {
                "model": model if isinstance(model, str) else "",
                "messages": messages,
            }
            headers = {"x-claude-code-session-id": turns[0].session}
            headers |= turns[0].origin.headers
            if turns[0].agent or turns[0].is_sidechain:
                # Older sub-agents have no id; their first record stands for them.
                agent = turns[0].agent or branch[0].uuid
                headers["x-claude-code-agent-id"] = agent
            exchange = _exchange(branch[-1].t, headers, body, turns)
            yield FoundRequest(exchange, f"answer {answer}", answer, is_logged=False)


def _exchange(
    t: float, headers: dict[str, str], body: dict[str, Json], answer: Sequence[Turn]
) -> Exchange:
    path = "/v1/messages?beta=true"
    response = Response(answer[-1].t, 200, 0.0, join_answer(answer)) if answer else None
    return Exchange(0, t, "POST", path, headers, body, response)


def _headers(record: RequestRecord, source: Source) -> dict[str, str]:
    headers = {"x-claude-code-session-id": record.session_id or source.path.stem}
    if record.agent_id:
        headers["x-claude-code-agent-id"] = record.agent_id
    if record.query_source:
        headers["x-claude-code-query-source"] = record.query_source
    betas = record.params.get("betas")
    if isinstance(betas, list):
        headers["anthropic-beta"] = ",".join(map(str, betas))
    return headers
