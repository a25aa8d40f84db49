"""The records of Claude Code's transcripts, as far as requests and answers need them.

The format is its maker's own and changes without notice, so what is not needed may be
missing or of any form; what is needed has to be what a request can hold, because one
that is refused would stop the replay of all.

Knows nothing of files or of what records add up to.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from mlxlab.rendering.messages import Message, MessagesRequest
from mlxlab.traces.schema import Json, Path

__all__ = [
    "ASIDE",
    "BlobRecord",
    "RequestRecord",
    "SaidRecord",
    "ShapeRecord",
    "parse_time",
]

#: Kinds that have no part in a request, or whose part an api-request tells again.
ASIDE = frozenset(
    {
        "agent-color",
        "agent-name",
        "agent-setting",
        "ai-title",
        "api-request-resumed",
        "artifact-comment-monitor",
        "atis-latch",
        "attachment",
        "bridge-session",
        "content-replacement",
        "continued-in",
        "cost-state",
        "custom-title",
        "data-flow-incomplete",
        "data-flow-records",
        "derived-from",
        "dev-mods",
        "ended-by-model",
        "file-history-delta",
        "file-history-snapshot",
        "fork-context-ref",
        "frame-link",
        "history-suppression",
        "hybrid-organization",
        "isolation-latch",
        "last-prompt",
        "memory-mode",
        "mode",
        "observer-ref",
        "permission-mode",
        "pr-link",
        "progress",
        "queue-operation",
        "repl-mode",
        "resume-head-vouch",
        "session-owner",
        "summary",
        "system",
        "tag",
        "tools-used",
        "worktree-state",
    }
)
#: The model that the client names in messages of its own.
_SYNTHETIC = "<synthetic>"


def _shape(value: dict[str, Json]) -> dict[str, Json]:
    MessagesRequest.model_validate({**value, "model": "", "messages": []})
    return value


def _params(value: dict[str, Json]) -> dict[str, Json]:
    MessagesRequest.model_validate({**value, "messages": []})
    return value


def _message(value: dict[str, Json]) -> dict[str, Json]:
    Message.model_validate(value)
    return value


_Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


class _Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True)

    session_id: _Text = ""
    agent_id: _Text = ""


class ShapeRecord(_Record):
    """System, without the attribution block, and tools."""

    shape_hash: str
    shape: Annotated[dict[str, Json], AfterValidator(_shape)]


class BlobRecord(_Record):
    """A message that the conversation does not hold."""

    hash: str
    message: Annotated[dict[str, Json], AfterValidator(_message)]


class Mark(BaseModel):
    """A cache marker: the path of its block in the request, and its value."""

    model_config = ConfigDict(frozen=True)

    path: Path
    value: Json


class RequestRecord(_Record):
    """A request.

    Attributes:
        params: its other keys, and the betas of its header.
        base: the request whose first ``keep`` messages it begins with.
        tail: hashes of its further messages.
        cut: what the client kept out of the record, if anything.
        withheld: names of params kept out.
    """

    id: str
    shape_hash: str
    params: Annotated[dict[str, Json], AfterValidator(_params)]
    base: _Text = ""
    keep: Annotated[int, Field(ge=0)] = 0
    tail: tuple[str, ...]
    cache_control: tuple[Mark, ...] = ()
    query_source: _Text = ""
    cut: Json = None
    withheld: Json = None


class SaidRecord(_Record):
    """Something that was said, by the user, a tool or the model.

    Attributes:
        request_ref: the request that it answers.
        is_sidechain: whether a sub-agent heard or said it.
    """

    uuid: str
    parent_uuid: _Text = ""
    message: Annotated[dict[str, Json], AfterValidator(_message)]
    request_ref: _Text = ""
    is_sidechain: bool | None = None
    is_api_error_message: bool | None = None

    @property
    def answer(self) -> str:
        """Id of the message that it is a part of, empty if it has none."""
        id = self.message.get("id")
        return id if isinstance(id, str) else ""

    @property
    def is_the_clients(self) -> bool:
        """Whether the client made it up, to show an error."""
        return bool(self.is_api_error_message) or (
            self.message.get("model") == _SYNTHETIC
        )


def parse_time(timestamp: Json, otherwise: float) -> float:
    """Unix seconds of a record's timestamp."""
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except (TypeError, ValueError, OverflowError):
        return otherwise
