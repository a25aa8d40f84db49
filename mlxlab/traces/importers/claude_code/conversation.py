"""The conversation in a transcript: answers, and the messages before each.

One answer is often split over several records with the same ``message.id``. Records
form a tree by ``parentUuid``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlxlab.traces.schema import Json
from mlxlab.traces.trace import BRANCH_HEADER, CWD_HEADER, START_HEADER, USER_AGENT

__all__ = ["Conversation", "Origin", "Turn", "join_answer"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The client that wrote a record, as far as the record names it.

    Attributes:
        version: of the client.
        cwd: the folder that it worked in.
        branch: of git there.
        start: how often the session was continued by a new process before.
    """

    version: str = ""
    cwd: str = ""
    branch: str = ""
    start: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request that stand for it."""
        named = {
            USER_AGENT: f"claude-cli/{self.version}" if self.version else "",
            CWD_HEADER: self.cwd,
            BRANCH_HEADER: self.branch,
            START_HEADER: str(self.start) if self.start else "",
        }
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True, slots=True)
class Turn:
    """A record with content from the user, a tool, the model or the client.

    Attributes:
        parent: uuid of the record before it; empty for the first.
        message: the recorded message without its content.
        blocks: the content.
        t: Unix seconds.
        session: id of the session.
        agent: the sub-agent's id, empty for the main loop.
        is_sidechain: whether it belongs to a sub-agent, which may have no id.
        origin: the client that wrote it.
    """

    uuid: str
    parent: str
    role: str
    message: dict[str, Json]
    blocks: list[Json]
    t: float
    session: str
    agent: str
    is_sidechain: bool
    origin: Origin

    @property
    def answer(self) -> str:
        """Id of the message that the turn is a part of."""
        id = self.message.get("id")
        return (isinstance(id, str) and id) or self.uuid

    def block_ids(self, key: str) -> Iterator[str]:
        """Yield ids of tool calls (``id``) or of tool results (``tool_use_id``)."""
        for block in self.blocks:
            if isinstance(block, dict) and isinstance(block.get(key), str):
                yield block[key]


def join_answer(turns: Sequence[Turn]) -> dict[str, Json]:
    """Return the message that ``turns`` are the parts of."""
    content = [block for turn in turns for block in turn.blocks]
    return {**turns[-1].message, "role": "assistant", "content": content}


@dataclass(slots=True)
class _Group:
    """Turns that are sent as one message."""

    role: str
    turns: list[Turn] = field(default_factory=list)

    def accepts(self, turn: Turn) -> bool:
        return turn.role == self.role != "assistant"


class Conversation:
    """The turns of one file.

    Attributes:
        answers: the turns of each answer, by message id.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[Turn]] = {}
        self._parents: dict[str, str] = {}
        self._turns: dict[str, Turn] = {}
        self._results: dict[str, Turn] = {}
        #: Equal messages of several requests are one object.
        self._messages: dict[tuple[str, ...], dict[str, Json]] = {}

    def link(self, uuid: str, parent: str) -> None:
        """Add a record without content, which may be the parent of a turn."""
        self._parents.setdefault(uuid, parent)

    def add(self, turn: Turn) -> None:
        """Add a turn."""
        self.link(turn.uuid, turn.parent)
        self._turns.setdefault(turn.uuid, turn)
        if turn.role == "assistant":
            self.answers.setdefault(turn.answer, []).append(turn)
        else:
            for id in turn.block_ids("tool_use_id"):
                self._results.setdefault(id, turn)

    def ancestors(self, turn: Turn) -> list[Turn]:
        """Return the turns before ``turn`` on its branch, the first one first."""
        found: list[Turn] = []
        seen = {turn.uuid}
        uuid = turn.parent
        while uuid and uuid not in seen:
            seen.add(uuid)
            if uuid in self._turns:
                found.append(self._turns[uuid])
            uuid = self._parents.get(uuid, "")
        return found[::-1]

    def messages(self, branch: Sequence[Turn]) -> list[dict[str, Json]]:
        """Return the messages that the turns of a branch are sent as."""
        groups: list[_Group] = []
        for turn in self._completed(branch):
            if groups and groups[-1].accepts(turn):
                groups[-1].turns.append(turn)
            else:
                groups.append(_Group(turn.role, [turn]))
        return [self._message(group) for group in groups]

    def _completed(self, branch: Sequence[Turn]) -> Iterator[Turn]:
        """Add turns beside the branch: other parts of answers, and tool results.

        Of tools that were called together, only one result is on the branch.
        """
        seen = {turn.uuid for turn in branch}
        answered = set()
        for turn in branch:
            if turn.role != "assistant":
                yield turn
            elif turn.answer not in answered:
                answered.add(turn.answer)
                yield turn
                for part in self.answers[turn.answer]:
                    for id in part.block_ids("id"):
                        result = self._results.get(id)
                        if result is not None and result.uuid not in seen:
                            seen.add(result.uuid)
                            yield result

    def _message(self, group: _Group) -> dict[str, Json]:
        key = tuple(turn.uuid for turn in group.turns)
        if key not in self._messages:
            turns = group.turns
            if group.role == "assistant":
                turns = self.answers[turns[0].answer]
            content = [block for turn in turns for block in turn.blocks]
            self._messages[key] = {"role": group.role, "content": _as_sent(content)}
        return self._messages[key]


def _as_sent(content: list[Json]) -> Json:
    """Return a lone text as a string, which is how the client sends it."""
    match content:
        case [{"type": "text", "text": str(text), **more}] if not more:
            return text
    return content
