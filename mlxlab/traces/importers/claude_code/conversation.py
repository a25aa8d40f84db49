"""The conversation in a transcript: answers, and what came before each.

One answer is often split over several records with the same ``message.id``; records
form a tree by ``parentUuid``. Knows nothing of the records that rebuild requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlxlab.traces.schema import Json

__all__ = ["Conversation", "Turn", "join_answer"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A record of what the user, a tool or the model said.

    Attributes:
        parent: uuid of the record before it; empty for the first.
        message: as recorded, without its content.
        blocks: the content.
        session: id of the session.
        agent: the sub-agent's id, empty for the main loop.
        aside: whether it belongs to a sub-agent, named or not.
    """

    uuid: str
    parent: str
    role: str
    message: dict[str, Json]
    blocks: list[Json]
    t: float
    session: str
    agent: str
    aside: bool

    @property
    def answer(self) -> str:
        """Id of the message that it is a part of."""
        id = self.message.get("id")
        return (isinstance(id, str) and id) or self.uuid

    def used(self, key: str) -> Iterator[str]:
        """Ids of tool calls (``id``) or of the results of some (``tool_use_id``)."""
        for block in self.blocks:
            if isinstance(block, dict) and isinstance(block.get(key), str):
                yield block[key]


def join_answer(turns: Sequence[Turn]) -> dict[str, Json]:
    """The message of which ``turns`` are the parts."""
    content = [block for turn in turns for block in turn.blocks]
    return {**turns[-1].message, "role": "assistant", "content": content}


@dataclass(slots=True)
class _Group:
    """Turns that make one message."""

    role: str
    turns: list[Turn] = field(default_factory=list)

    def accepts(self, turn: Turn) -> bool:
        return turn.role == self.role == "user"


class Conversation:
    """The turns of one file."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Turn]] = {}
        self._parents: dict[str, str] = {}
        self._turns: dict[str, Turn] = {}
        self._results: dict[str, Turn] = {}
        #: Equal messages of several requests are one object.
        self._messages: dict[tuple[str, ...], dict[str, Json]] = {}

    def link(self, uuid: str, parent: str) -> None:
        """Take in a record that is no turn but may stand between some."""
        self._parents.setdefault(uuid, parent)

    def add(self, turn: Turn) -> None:
        """Take in a turn."""
        self.link(turn.uuid, turn.parent)
        self._turns.setdefault(turn.uuid, turn)
        if turn.role == "assistant":
            self.answers.setdefault(turn.answer, []).append(turn)
        else:
            for id in turn.used("tool_use_id"):
                self._results.setdefault(id, turn)

    def chain(self, turn: Turn) -> list[Turn]:
        """The turns before ``turn``, the first one first."""
        found: list[Turn] = []
        met = {turn.uuid}
        uuid = turn.parent
        while uuid and uuid not in met:
            met.add(uuid)
            if uuid in self._turns:
                found.append(self._turns[uuid])
            uuid = self._parents.get(uuid, "")
        return found[::-1]

    def messages(self, chain: Sequence[Turn]) -> list[dict[str, Json]]:
        """What a chain of turns is sent as."""
        groups: list[_Group] = []
        for turn in self._completed(chain):
            if groups and groups[-1].accepts(turn):
                groups[-1].turns.append(turn)
            else:
                groups.append(_Group(turn.role, [turn]))
        return [self._message(group) for group in groups]

    def _completed(self, chain: Sequence[Turn]) -> Iterator[Turn]:
        """Adds what a chain passes by: the other parts of answers, and results.

        Of tools that were called together only one result is on the chain.
        """
        met = {turn.uuid for turn in chain}
        answered = set()
        for turn in chain:
            if turn.role != "assistant":
                yield turn
            elif turn.answer not in answered:
                answered.add(turn.answer)
                yield turn
                for part in self.answers[turn.answer]:
                    for id in part.used("id"):
                        result = self._results.get(id)
                        if result is not None and result.uuid not in met:
                            met.add(result.uuid)
                            yield result

    def _message(self, group: _Group) -> dict[str, Json]:
        key = tuple(turn.uuid for turn in group.turns)
        if key not in self._messages:
            turns = group.turns
            if group.role == "assistant":
                turns = self.answers[turns[0].answer]
            content = [block for turn in turns for block in turn.blocks]
            self._messages[key] = {"role": group.role, "content": _plain(content)}
        return self._messages[key]


def _plain(content: list[Json]) -> Json:
    """A lone text is sent as a string."""
    match content:
        case [{"type": "text", "text": str(text), **more}] if not more:
            return text
    return content
