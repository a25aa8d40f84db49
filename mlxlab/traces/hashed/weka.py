"""Hashed Claude Code sessions as ``callanjfox/kv-cache-tester`` publishes them.

A file holds one JSON object, packed with gzip or not: ``block_size``, ``tool_tokens``,
``system_tokens``, ``requests``. A request of type ``subagent`` nests others. One of
type ``s`` was streamed: it has a ``ttft`` where one of type ``n`` has none, and is a
turn of its conversation like that. Half of the streamed ones lack ``api_time`` and
``stop``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from mlxlab.content import unpacked
from mlxlab.errors import TraceError
from mlxlab.prompt import Role
from mlxlab.traces.hashed.base import (
    HASHED_FORMATS,
    BlockId,
    Count,
    HashedFormat,
    Unit,
    Word,
)
from mlxlab.traces.hashed.trace import HashedRequest
from mlxlab.traces.schema import Seconds

__all__ = ["Weka"]


class _Request(BaseModel):
    type: Literal["n", "s"]
    t: Seconds
    tokens: Annotated[Count, Field(alias="in", ge=1)]
    hash_ids: list[BlockId]
    stop: Word | None = None
    api_time: Seconds | None = None


class _Agent(BaseModel):
    type: Literal["subagent"]
    t: Seconds
    agent_id: str = ""
    tool_tokens: Count = 0
    system_tokens: Count = 0
    requests: list[_Request]


class _Session(BaseModel):
    block_size: Unit
    tool_tokens: Count = 0
    system_tokens: Count = 0
    requests: list[Annotated[_Request | _Agent, Field(discriminator="type")]]


_SESSION = TypeAdapter(_Session)


@HASHED_FORMATS.register
class Weka(HashedFormat):
    """One Claude Code session per file, sub-agents nested in it."""

    name = "weka"
    summary = "hashed Claude Code sessions of kv-cache-tester, .json or .json.gz"
    signature = b'"block_size"'

    def unit(self, path: Path) -> int:
        return _parse(path).block_size

    def requests(self, path: Path) -> Iterator[HashedRequest]:
        # Requests of sub-agents arrive between those of the main loop.
        yield from sorted(_requests(_parse(path)), key=lambda request: request.t)


def _requests(session: _Session) -> Iterator[HashedRequest]:
    for request in session.requests:
        if isinstance(request, _Agent):
            for own in request.requests:
                yield _hashed(own, request.t, request, request.agent_id)
        else:
            yield _hashed(request, 0.0, session, "")


def _hashed(
    request: _Request, begun: float, owner: _Session | _Agent, agent: str
) -> HashedRequest:
    # The API puts tools in front of the system text.
    roles = (Role.TOOLS, owner.tool_tokens), (Role.SYSTEM, owner.system_tokens)
    chained = np.array(request.hash_ids, dtype=np.int32)
    t, taken = begun + request.t, request.api_time
    return HashedRequest(
        t,
        request.tokens,
        chained,
        roles=roles,
        agent=agent,
        ended=None if taken is None else t + taken,
        stop=request.stop or "",
    )


def _parse(path: Path) -> _Session:
    try:
        with unpacked(path) as file:
            return _SESSION.validate_json(file.read())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        at = ".".join(map(str, first["loc"])) or "file"
        raise TraceError(
            f"{path}: {at}: {first['msg']}; accepted: a hashed session"
        ) from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a hashed session") from None
