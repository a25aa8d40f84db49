"""The lines of a trace file, version 1: one JSON object each, told apart by ``kind``.

The first line is a :class:`HeaderLine`. A :class:`BodyLine` holds one system
block, tool or message, once, before its first use; a :class:`RequestLine` refers
to bodies by hash, and a :class:`ResponseLine` follows the request it answers.

In a request's ``system``, ``tools`` and ``messages`` an item is a hash, or a pair
``[id, count]``: the first ``count`` items that the earlier request ``id`` has
there. So a long session takes about the space of its last request, not the sum of all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NoReturn, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from mlxlab.limits import TRACE_DEPTH, TRACE_SECONDS
from mlxlab.traces.completeness import Completeness

__all__ = [
    "VERSION",
    "BodyLine",
    "Configuration",
    "Generated",
    "HeaderLine",
    "Json",
    "LearnedGaps",
    "Line",
    "RequestLine",
    "ResponseLine",
    "Seconds",
    "Timing",
    "Told",
    "body_hash",
    "check_depth",
    "decode",
    "encode",
    "parse_line",
]

VERSION: Literal[1] = 1
RECORDER = "mlxlab 0.1.0"


Json: TypeAlias = Any
Seconds = Annotated[
    float, Field(strict=True, ge=0, lt=TRACE_SECONDS, allow_inf_nan=False)
]
"""Unix seconds, or seconds since something began."""
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_FEW = Field(max_length=500)
RequestId = Annotated[int, Field(ge=0, strict=True)]
Run = tuple[RequestId, Annotated[int, Field(ge=0, strict=True)]]
Item: TypeAlias = Hash | Run
Path: TypeAlias = tuple[str | int, ...]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HeaderLine(BaseModel):
    """What recorded the trace and when; further keys are notes on provenance.

    Attributes:
        skipped: what of its source is not in the trace, or not as it was, and how
            often, by reason.
        filled: what was assumed of prompts that the source had in part only.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["trace"] = "trace"
    version: Literal[1] = VERSION
    recorder: str = RECORDER
    created: str = Field(default_factory=_now)
    skipped: dict[str, Annotated[int, Field(ge=0, strict=True)]] = {}
    filled: Completeness | None = None

    @property
    def notes(self) -> Mapping[str, Json]:
        """The further keys."""
        return self.model_extra or {}


class BodyLine(_Closed):
    """A system block, tool or message without its ``cache_control``.

    The body is a string when it is a whole ``system`` in its string form.
    """

    kind: Literal["body"] = "body"
    hash: Hash
    body: Json


class RequestLine(_Closed):
    """A request, its bodies by reference.

    Attributes:
        t: arrival, Unix seconds.
        params: every other key of the body; None if the body was not a JSON object.
        system: items, or one bare hash when it was a string; absent if absent.
        cache_control: pairs of a path into the request and the value there.
    """

    kind: Literal["request"] = "request"
    id: RequestId
    t: Seconds
    method: str
    path: str
    headers: dict[str, str] = {}
    params: dict[str, Json] | None = None
    system: Hash | tuple[Item, ...] | None = None
    tools: tuple[Item, ...] | None = None
    messages: tuple[Item, ...] | None = None
    cache_control: tuple[tuple[Path, Json], ...] = ()

    @model_validator(mode="after")
    def _lists_belong_to_a_body(self) -> Self:
        lists = (self.system, self.tools, self.messages)
        if self.params is None and any(items is not None for items in lists):
            raise ValueError("lists without params")
        return self


class Generated(_Closed):
    """The ids that a model generated; its text does not tell how it was cut.

    Attributes:
        tokenizer: digest of the tokenizer that the ids are of.
        ids: the end of turn included, if the answer got that far.
        thinking: whether the model was to reason, where the server decided that; None
            where the request did.
        redacted: whether ids of secrets were replaced. Where nothing could take their
            place ``ids`` is empty.
    """

    tokenizer: str
    ids: tuple[TokenId, ...]
    thinking: bool | None = None
    redacted: bool = False

    def to_json(self) -> dict[str, Json]:
        """As it stands in a line; what most answers do not have is left out."""
        return self.model_dump(
            mode="json", exclude=None if self.redacted else {"redacted"}
        )


class Configuration(_Closed):
    """What our own server answered with.

    Attributes:
        strategy: ``name[:key=value,...]``.
        rules: names joined by commas, ``all`` or ``none``.
    """

    strategy: str
    rules: str


class Order(_Closed):
    """When our own server planned a request and stored its tokens.

    Several requests run at once. So these numbers, from one count of all plans and
    commits of a server, say what was stored when a prompt was planned.

    Attributes:
        planned: number of the plan.
        stored: number of each commit, and the leading tokens of prompt and answer that
            it stored, in order.
    """

    planned: int
    stored: tuple[tuple[int, int], ...] = ()


LearnedGaps: TypeAlias = Annotated[
    dict[Annotated[str, Field(max_length=300)], Annotated[tuple[Seconds, ...], _FEW]],
    Field(max_length=1000),
]
"""Seconds between answers and next requests that a policy has learned, by kind."""


class Told(_Closed):
    """What our own server told its eviction policy of a request, at its last commit.

    The session and the tools called stand in request and message.

    Attributes:
        arrived: Unix seconds of a clock that is never set back.
        ended: when the answer had ended, likewise; None while it runs.
        stop: the stop reason; empty if the answer was cut off.
        side: whether it was a side request, as far as that was known.
        running: whether the answer was to go on.
        learned: what policies had learned before, by name; with the first request of a
            server that went on from that.
    """

    arrived: Seconds
    ended: Seconds | None = None
    stop: str = ""
    side: bool = False
    running: bool = False
    learned: dict[str, LearnedGaps] | None = None

    def to_json(self) -> dict[str, Json]:
        """As it stands in a line; what most answers do not have is left out."""
        return self.model_dump(
            mode="json", exclude={"learned"} if self.learned is None else None
        )


class Timing(_Closed):
    """Seconds of an answer of our own server; the parts add up to the whole.

    Attributes:
        queue: rendering, and waiting for others.
        restore: planning, and putting reused tokens in place.
        prefill: computing the other tokens of the prompt.
        decode: from the first generated id to the end.
    """

    queue: Seconds
    restore: Seconds
    prefill: Seconds
    decode: Seconds


class ResponseLine(_Closed):
    """An answer; a streamed one is joined to one message.

    Attributes:
        t: its end, Unix seconds.
        first_byte_s: seconds from the request to the first byte of the answer.
        message: a message, an error body, or None if it was not a JSON object.
            A message without ``stop_reason`` was cut off.
        script: True if a script wrote it; the usage is an estimate then.
        generated: what was generated, if the recorder could see it.
        configuration: what the server was set to, likewise.
        order: when it was planned and stored, likewise.
        told: what its eviction policy was told, likewise.
        timing: where its time went, likewise.
    """

    kind: Literal["response"] = "response"
    id: RequestId
    t: Seconds
    status: Annotated[int, Field(strict=True, ge=100, le=999)]
    first_byte_s: Seconds
    message: dict[str, Json] | None = None
    script: bool = False
    generated: Generated | None = None
    configuration: Configuration | None = None
    order: Order | None = None
    told: Told | None = None
    timing: Timing | None = None


Line: TypeAlias = HeaderLine | BodyLine | RequestLine | ResponseLine
_LINES: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Discriminator("kind")])


def encode(value: Json) -> bytes:
    """Compact UTF-8 JSON with the key order as it is.

    Raises:
        ValueError: NaN, infinity, or a value that JSON does not have.
        RecursionError: nested too deeply.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can hold it
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes | str) -> Json:
    """The inverse of :func:`encode`; refuses numbers that are not finite.

    Raises:
        ValueError: not JSON, not UTF-8, or a number that is not finite.
        RecursionError: lists and objects nested more than ``TRACE_DEPTH`` deep.
    """
    value = json.loads(data, parse_constant=_not_finite, parse_float=_finite)
    check_depth(value)
    return value


def check_depth(value: Json) -> None:
    """Refuse what functions that call themselves could not walk through.

    Raises:
        RecursionError: lists and objects nested more than ``TRACE_DEPTH`` deep.
    """
    level: list[Json] = [[value]]
    for _ in range(TRACE_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise RecursionError("nested too deeply")


def body_hash(body: Json) -> str:
    """Return the SHA-256 of a body's encoding, cut to 32 hexadecimal digits.

    Key order matters, because chat templates print blocks and schemas in order.
    """
    return hashlib.sha256(encode(body)).hexdigest()[:32]


def parse_line(value: Json) -> Line:
    """Return the line in a decoded JSON object.

    Raises:
        ValueError: not a line of this version; the message says what is wrong.
    """
    try:
        return _LINES.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise ValueError(f"{at}: {first['msg']}" if at else first["msg"]) from None


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; only finite numbers are")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _not_finite(digits)
