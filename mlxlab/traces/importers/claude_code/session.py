"""One file of Claude Code's history: its records, and the requests that they rebuild.

Knows nothing of other files, nor of which requests are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from pydantic import ValidationError
from tqdm.auto import tqdm

from mlxlab.traces.dedup import Parts, join
from mlxlab.traces.importers.claude_code.conversation import (
    Conversation,
    Turn,
    join_answer,
)
from mlxlab.traces.importers.claude_code.hashes import Messages, digest
from mlxlab.traces.importers.claude_code.records import (
    ASIDE,
    BlobRecord,
    RequestRecord,
    SaidRecord,
    ShapeRecord,
    parse_time,
)
from mlxlab.traces.importers.files import Source, read_records
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.schema import Json
from mlxlab.traces.trace import Exchange, Response

__all__ = ["REBUILT", "Draft", "SessionFile", "Shapes"]

REBUILT = "request rebuilt from the conversation, without system and tools"

Shapes: TypeAlias = dict[str, dict[str, Json]]
"""System and tools by hash; many files have the same."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A request that was found.

    Attributes:
        exchange: its id does not matter.
        key: tells it from all others, in whatever file it is found.
        answer: id of the message that answers it, empty if none does.
        exact: whether it is as sent, or rebuilt from the conversation.
    """

    exchange: Exchange
    key: str
    answer: str
    exact: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request whose answer, and messages, are somewhere in the file."""

    record: RequestRecord
    t: float
    place: str


class SessionFile:
    """A transcript of a session or of one of its sub-agents.

    Args:
        source: the file.
        shapes: those of other files; its own are added.
        tally: for what cannot be used.
    """

    def __init__(self, source: Source, shapes: Shapes, tally: Tally) -> None:
        self._source = source
        self._shapes = shapes
        self._tally = tally
        self._messages = Messages(tally.cleaned)
        self._conversation = Conversation()
        self._asked: list[_Asked] = []
        self._names: dict[str, tuple[str, ...]] = {}
        self._replies: dict[str, str] = {}
        self._t = source.changed

    def drafts(self, bar: tqdm[NoReturn] | None = None) -> list[Draft]:
        """Read the file and rebuild its requests."""
        for place, value in read_records(self._source, self._tally, bar):
            try:
                self._take(value, place)
            except (ValidationError, RecursionError):
                self._tally.name("record that lacks something skipped", place)
        exact = [draft for asked in self._asked for draft in self._exact(asked)]
        return [*exact, *self._approximate({draft.answer for draft in exact})]

    def _take(self, value: dict[str, Json], place: str) -> None:
        self._t = parse_time(value.get("timestamp"), self._t)
        match value.get("type"):
            case "api-request-shape":
                self._take_shape(ShapeRecord.model_validate(value), place)
            case "api-request-blob":
                self._take_blob(BlobRecord.model_validate(value), place)
            case "api-request":
                self._take_request(RequestRecord.model_validate(value), place)
            case "user" | "assistant" as role:
                self._take_said(SaidRecord.model_validate(value), role)
            case kind:
                if not (isinstance(kind, str) and kind in ASIDE):
                    self._tally.add("record of an unknown kind skipped")
                uuid, parent = value.get("uuid"), value.get("parentUuid")
                if isinstance(uuid, str) and isinstance(parent, str):
                    self._conversation.link(uuid, parent)

    def _take_shape(self, record: ShapeRecord, place: str) -> None:
        if record.shape_hash not in self._shapes:
            if digest(record.shape) != record.shape_hash:
                self._tally.name("system and tools unlike their hash", place)
            self._shapes[record.shape_hash] = self._tally.cleaned(record.shape)

    def _take_blob(self, record: BlobRecord, place: str) -> None:
        if not self._messages.store(record.hash, record.message):
            self._tally.name("message unlike its hash", place)

    def _take_request(self, record: RequestRecord, place: str) -> None:
        base = self._names.get(record.base, ())
        if record.keep > len(base):
            self._tally.name("request without the one it goes on from skipped", place)
            return
        self._names[record.id] = (*base[: record.keep], *record.tail)
        self._asked.append(_Asked(record, self._t, place))

    def _take_said(self, record: SaidRecord, role: str) -> None:
        if record.is_the_clients:
            self._conversation.link(record.uuid, record.parent_uuid)
            return
        content = record.message.get("content", [])
        rest = {k: v for k, v in record.message.items() if k != "content"}
        turn = Turn(
            record.uuid,
            record.parent_uuid,
            role,
            self._tally.cleaned(rest),
            self._messages.say(role, record.answer, content),
            self._t,
            record.session_id or self._source.path.stem,
            record.agent_id,
            bool(record.is_sidechain),
        )
        self._conversation.add(turn)
        if role == "assistant":
            self._note_reply(record, turn)

    def _note_reply(self, record: SaidRecord, turn: Turn) -> None:
        if record.request_ref:
            self._replies[record.request_ref] = turn.answer
        elif self._asked and self._asked[-1].record.agent_id == record.agent_id:
            # Older records do not say what they answer: it is what was asked last.
            self._replies.setdefault(self._asked[-1].record.id, turn.answer)

    def _exact(self, asked: _Asked) -> Iterator[Draft]:
        record = asked.record
        names = self._names[record.id]
        if record.shape_hash not in self._shapes:
            reason = "request without its system and tools skipped"
            self._tally.name(reason, asked.place)
        elif not names or not all(name in self._messages for name in names):
            self._tally.name("request without all its messages skipped", asked.place)
        else:
            if record.cut is not None or record.withheld:
                self._tally.add("request of which the client withheld a part")
            answer = self._replies.get(record.id, "")
            exchange = _exchange(
                asked.t,
                _headers(record, self._source),
                self._body(record, names, asked.place),
                self._conversation.answers.get(answer, ()),
            )
            yield Draft(exchange, record.id, answer, exact=True)

    def _body(
        self, record: RequestRecord, names: Sequence[str], place: str
    ) -> dict[str, Json]:
        marks = tuple((mark.path, mark.value) for mark in record.cache_control)
        marked = {
            path[1] for path, _ in marks if path[:1] == ("messages",) and path[2:]
        }
        messages = [
            self._messages.get(name, marked=i in marked) for i, name in enumerate(names)
        ]
        params = {key: v for key, v in record.params.items() if key != "betas"}
        lists = {**self._shapes[record.shape_hash], "messages": messages}
        parts = Parts(self._tally.cleaned(params), lists, marks)
        try:
            return join(parts)
        except (LookupError, TypeError):
            self._tally.name("cache marker that leads nowhere left out", place)
            return join(Parts(parts.params, lists, ()))

    def _approximate(self, answered: set[str]) -> Iterator[Draft]:
        """Requests for the answers that no api-request record asked for."""
        for answer, turns in self._conversation.answers.items():
            if answer in answered:
                continue
            chain = self._conversation.chain(turns[0])
            messages = self._conversation.messages(chain)
            if not messages:
                self._tally.add("answer without what it answers skipped")
                continue
            model = turns[0].message.get("model")
            body = {
                "model": model if isinstance(model, str) else "",
                "messages": messages,
            }
            headers = {"x-claude-code-session-id": turns[0].session}
            if turns[0].agent or turns[0].aside:
                # Before sub-agents had ids, the first record of one stood for it.
                agent = turns[0].agent or chain[0].uuid
                headers["x-claude-code-agent-id"] = agent
            exchange = _exchange(chain[-1].t, headers, body, turns)
            yield Draft(exchange, f"answer {answer}", answer, exact=False)


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
