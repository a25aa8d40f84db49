"""Our own form of hashed traces: chained hashes, content hashes and segment roles.

A line holds one JSON object with a ``kind``. The first line is the header. A line of
kind ``chained`` or ``content`` adds new hashes, which are numbered in order: the file
holds each hash once. A ``request`` refers to hashes by runs ``[first, count]``.

A chained hash stands for a unit of tokens and everything before it. A content hash
stands for a unit of one segment by itself: a tool that moved has other chained hashes
and equal content hashes. All hashes are keyed with a salt. Without the salt, texts
cannot be guessed by hashing candidates.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
)

from mlxlab.content import Content, unpacked
from mlxlab.errors import TraceError
from mlxlab.files import written
from mlxlab.limits import CALLS, PROMPT_HASHES
from mlxlab.prompt import Role, Segment, Tokens
from mlxlab.traces.hashed.base import HASHED_FORMATS, Count, HashedFormat, Unit, Word
from mlxlab.traces.hashed.trace import HashedRequest
from mlxlab.traces.schema import HeaderLine, Json, Seconds, encode

__all__ = ["HashedFile", "Hasher", "write_hashed"]

HASH_BYTES = 8
_Runs: TypeAlias = list[tuple[Count, Annotated[Count, Field(ge=1)]]]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Header(HeaderLine):
    kind: Literal["hashed"] = "hashed"  # type: ignore[assignment]
    unit: Unit


class _Hashes(_Closed):
    kind: Literal["chained", "content"]
    hashes: list[str]


class _Part(_Closed):
    role: Role
    tokens: Count
    content: _Runs = []


class _Request(_Closed):
    kind: Literal["request"]
    t: Seconds
    session: str
    agent: str = ""
    tokens: Annotated[Count, Field(ge=1)]
    answer_tokens: Count = 0
    chained: _Runs = []
    parts: list[_Part] = []
    ended: Seconds | None = None
    stop: Word = ""
    tools: Annotated[list[Word], Field(max_length=CALLS)] = []
    side: bool = False


_LINES: TypeAdapter[_Hashes | _Request] = TypeAdapter(
    Annotated[_Hashes | _Request, Discriminator("kind")]
)


class Hasher:
    """Turns rendered requests into hashed ones, and numbers hashes in order of use.

    Args:
        unit: tokens that one hash stands for.
        salt: key of the hashes; files with equal salts can be compared.
    """

    def __init__(self, unit: int, salt: bytes) -> None:
        self.unit = unit
        self._salt = blake2b(salt).digest()  # a key may not be longer
        self.chained: dict[bytes, int] = {}
        self.content: dict[bytes, int] = {}

    def request(
        self,
        t: float,
        tokens: Tokens,
        answer: Tokens,
        segments: Iterable[Segment],
        **facts: Any,
    ) -> HashedRequest:
        """Hash a prompt, its answer and each of the prompt's segments.

        Args:
            t: arrival, seconds since the trace began.
            tokens: of the prompt.
            answer: its tokens.
            segments: of the prompt.
            facts: the other attributes of the hashed request.
        """
        segments = tuple(segments)
        stored = np.concatenate([tokens, answer])[: len(tokens) + len(answer) - 1]
        return HashedRequest(
            t,
            len(tokens),
            self._chain(stored if len(answer) else tokens),
            len(answer),
            tuple((segment.role, len(segment)) for segment in segments),
            tuple(self._parts(tokens[s.start : s.stop]) for s in segments),
            **facts,
        )

    def _chain(self, tokens: Tokens) -> Tokens:
        numbers, before = [], b""
        for start in range(0, len(tokens) // self.unit * self.unit, self.unit):
            before = self._hash(before + self._bytes(tokens, start))
            numbers.append(self.chained.setdefault(before, len(self.chained)))
        return np.array(numbers, np.int32)

    def _parts(self, tokens: Tokens) -> Tokens:
        hashes = [
            self._hash(self._bytes(tokens, start))
            for start in range(0, len(tokens), self.unit)
        ]
        numbers = [self.content.setdefault(h, len(self.content)) for h in hashes]
        return np.array(numbers, np.int32)

    def _bytes(self, tokens: Tokens, start: int) -> bytes:
        return tokens[start : start + self.unit].tobytes()

    def _hash(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=HASH_BYTES, key=self._salt).digest()


def write_hashed(
    path: Path,
    hasher: Hasher,
    requests: Iterable[HashedRequest],
    notes: Mapping[str, Json],
) -> None:
    """Write a hashed trace, whole or not at all.

    Args:
        path: the file to write; it is packed if its name ends in ``.gz``.
        hasher: the hasher that makes ``requests`` while they are iterated.
        requests: requests in order of arrival.
        notes: further keys of the header, on provenance.

    Raises:
        TraceError: the file cannot be written.
    """
    header = _Header.model_validate({**notes, "unit": hasher.unit})
    packed = path.suffix == ".gz"
    try:
        with written(path) as file:
            # Without time and name in it, equal content gives equal files.
            out = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if packed else file
            out.write(encode(header.model_dump(mode="json")) + b"\n")
            counts = {"chained": 0, "content": 0}
            for request in requests:
                for kind, numbered in _tables(hasher).items():
                    new = [h.hex() for h in list(numbered)[counts[kind] :]]
                    counts[kind] += len(new)
                    if new:
                        out.write(encode({"kind": kind, "hashes": new}) + b"\n")
                out.write(encode(_line(request)) + b"\n")
            if packed:
                out.close()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a file to write") from None


@HASHED_FORMATS.register
class HashedFile(HashedFormat):
    """Our own form: chained hashes, content hashes and segment roles."""

    name = "hashed"
    summary = "salted hashes written by mlxlab export-trace, .jsonl or .jsonl.gz"
    signature = b'"kind":"hashed"'

    def unit(self, path: Path) -> int:
        with _opened(path) as content:
            return _header(path, next(iter(content), b"")).unit

    def requests(self, path: Path) -> Iterator[HashedRequest]:
        counts = {"chained": 0, "content": 0}
        with _opened(path) as content:
            lines = iter(content)
            _header(path, next(lines, b""))
            for number, data in enumerate(lines, start=2):
                try:
                    line = _LINES.validate_json(data)
                    if isinstance(line, _Hashes):
                        counts[line.kind] += len(line.hashes)
                    else:
                        yield _request(line, counts)
                except ValidationError as error:
                    raise _refusal(path, number, error) from None
                except ValueError as error:
                    raise TraceError(f"{path}:{number}: {error}") from None


def _tables(hasher: Hasher) -> dict[str, dict[bytes, int]]:
    return {"chained": hasher.chained, "content": hasher.content}


def _line(request: HashedRequest) -> dict[str, Json]:
    content = request.content or [np.empty(0, np.int32)] * len(request.roles)
    return {
        "kind": "request",
        "t": round(request.t, 3),
        "session": request.session,
        **({"agent": request.agent} if request.agent else {}),
        "tokens": request.tokens,
        "answer_tokens": request.answer,
        "chained": _runs(request.chained),
        "parts": [
            {"role": str(role), "tokens": tokens, "content": _runs(numbers)}
            for (role, tokens), numbers in zip(request.roles, content, strict=True)
        ],
        **_ending(request),
    }


def _ending(request: HashedRequest) -> dict[str, Json]:
    """Return what is known of the answer's end."""
    ended = None if request.ended is None else round(request.ended, 3)
    known: dict[str, Json] = {
        "ended": ended,
        "stop": request.stop,
        "tools": list(request.tools),
        "side": request.side,
    }
    return {key: x for key, x in known.items() if x or isinstance(x, float)}


def _runs(numbers: Tokens) -> list[tuple[int, int]]:
    """Return runs of consecutive numbers as first number and count."""
    if len(numbers) == 0:
        return []
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 2) != 1)
    counts = np.diff(starts, append=len(numbers))
    return list(zip(numbers[starts].tolist(), counts.tolist(), strict=True))


def _request(line: _Request, counts: Mapping[str, int]) -> HashedRequest:
    return HashedRequest(
        line.t,
        line.tokens,
        _numbers(line.chained, counts["chained"]),
        line.answer_tokens,
        tuple((part.role, part.tokens) for part in line.parts),
        tuple(_numbers(part.content, counts["content"]) for part in line.parts),
        line.session,
        line.agent,
        line.ended,
        line.stop,
        tuple(line.tools),
        line.side,
    )


def _numbers(runs: _Runs, known: int) -> Tokens:
    if any(first + count > known for first, count in runs):
        raise ValueError(f"a run beyond the {known} hashes so far; accepted: earlier")
    if sum(count for _, count in runs) > PROMPT_HASHES:
        raise ValueError(
            f"more than {PROMPT_HASHES:,} hashes; accepted: those of a prompt"
        )
    ranges = [np.arange(f, f + count, dtype=np.int32) for f, count in runs]
    return np.concatenate(ranges) if ranges else np.empty(0, np.int32)


def _header(path: Path, data: bytes) -> _Header:
    try:
        return _Header.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(path, 1, error) from None


def _refusal(path: Path, number: int, error: ValidationError) -> TraceError:
    first = error.errors(include_url=False, include_context=False)[0]
    at = ".".join(map(str, first["loc"])) or "line"
    return TraceError(f"{path}:{number}: {at}: {first['msg']}; accepted: version 1")


@contextmanager
def _opened(path: Path) -> Iterator[Content]:
    try:
        with unpacked(path) as lines:
            yield lines
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a hashed trace") from None
