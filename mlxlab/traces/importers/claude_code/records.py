"""The records of Claude Code's transcripts, as far as requests and answers need them.

The format changes without notice, so fields that are not needed may be missing or have
any form. Fields that are needed must be valid in a request, because one refused request
would stop the replay of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from mlxlab.limits import TRACE_SECONDS
from mlxlab.rendering.messages import Message, MessagesRequest
from mlxlab.traces.schema import Json, Path

__all__ = [
    "IGNORED",
    "BlobRecord",
    "RequestRecord",
    "ShapeRecord",
    "TurnRecord",
    "parse_time",
    "read_attachment",
]

#: Record types that requests do not need, or that api-request records repeat.
IGNORED = frozenset(
    {
        "agent-color",
        "agent-name",
        "agent-setting",
        "ai-title",
        "api-request-resumed",
        "artifact-comment-monitor",
        "atis-latch",
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
#: Kinds of attachments that become inline system messages (measured with 2.1.197).
_INLINE = frozenset({"agent_listing_delta", "file", "skill_listing", "task_reminder"})
#: Model name in messages that the client made up.
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
    """The system blocks, without the attribution block, and the tools."""

    shape_hash: str
    shape: Annotated[dict[str, Json], AfterValidator(_shape)]


class BlobRecord(_Record):
    """A message that is not in the conversation."""

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
        params: the other keys of the body, and the betas of the header.
        base: id of the request whose first ``keep`` messages this one repeats.
        tail: hashes of the further messages.
        cut: set if the client left a part out of the record.
        withheld: names of params that the client left out.
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


class TurnRecord(_Record):
    """A record with content from the user, a tool or the model.

    Attributes:
        request_ref: id of the request that it answers.
        is_sidechain: whether it belongs to a sub-agent.
        version: of the client.
        cwd: the folder that it works in.
    """

    uuid: str
    parent_uuid: _Text = ""
    message: Annotated[dict[str, Json], AfterValidator(_message)]
    request_ref: _Text = ""
    is_sidechain: bool | None = None
    is_api_error_message: bool | None = None
    version: Json = None
    cwd: Json = None
    git_branch: Json = None

    @property
    def answer(self) -> str:
        """Id of the message that the record is a part of, empty if unknown."""
        id = self.message.get("id")
        return id if isinstance(id, str) else ""

    @property
    def is_synthetic(self) -> bool:
        """Whether the client made up the message, to show an error."""
        return bool(self.is_api_error_message) or (
            self.message.get("model") == _SYNTHETIC
        )


def read_attachment(value: Json) -> str:
    """Return what an attachment adds to the prompt, as far as the history keeps it.

    The client puts its own words around it. Attachments of other kinds may go elsewhere
    or nowhere, so they add nothing.
    """
    if not isinstance(value, dict) or value.get("type") not in _INLINE:
        return ""
    kept = [value.get("addedLines"), value.get("content")]
    return "\n".join([value["type"], *_strings(kept)])


def _strings(value: Json) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            yield from _strings([item for key, item in value.items() if key != "type"])


def parse_time(timestamp: Json, otherwise: float) -> float:
    """Return Unix seconds of a record's timestamp, ``otherwise`` if it has none."""
    try:
        found = datetime.fromisoformat(timestamp).timestamp()
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return found if 0 <= found < TRACE_SECONDS else otherwise
