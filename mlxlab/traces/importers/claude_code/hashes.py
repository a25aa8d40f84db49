"""Messages by the hash under which Claude Code's transcripts refer to them.

The hash is SHA-256 of compact JSON as JavaScript writes it: keys sorted, every
``cache_control`` left out, and a string content made one text block. A message that
the conversation in the file holds is stored nowhere else. Consecutive user records, and
assistant records of one ``message.id``, are joined block by block, and every prefix of
such a run of records has a hash of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

from mlxlab.traces.schema import Json

__all__ = ["MessageStore", "as_blocks", "hash_value"]

Clean: TypeAlias = Callable[[Json], Json]

_quoted: Callable[[str], str] = json.encoder.encode_basestring
_LITERALS = {True: "true", False: "false", None: "null"}
#: Decimal exponents of numbers that JavaScript writes without an exponent.
_PLAIN_EXPONENTS = range(-6, 21)


def hash_value(value: Json) -> str:
    """Return the hash of a value with its content in blocks, such as a shape."""
    return hashlib.sha256(_encoded(value)).hexdigest()


def as_blocks(content: Json) -> list[Json]:
    """Return a message's content as a list of blocks."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else [content]


class MessageStore:
    """The messages that requests refer to, by hash.

    Args:
        clean: removes secrets from a value.
    """

    def __init__(self, clean: Clean) -> None:
        self._clean = clean
        self._stored: dict[str, dict[str, Json]] = {}
        self._joined: dict[str, _Prefix] = {}
        self._sent: dict[tuple[str, bool], dict[str, Json]] = {}
        self._run: _Run | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self._joined

    def store(self, name: str, message: dict[str, Json]) -> bool:
        """Store a message under ``name``; return whether that is its hash."""
        blocks = {**message, "content": as_blocks(message.get("content"))}
        self._stored[name] = self._clean(message)
        return hash_value(blocks) == name

    def add_record(self, role: str, id: str, content: Json) -> list[Json]:
        """Add the next record of the conversation; return its blocks, clean."""
        run = self._run
        if run is None or not run.accepts(role, id):
            run = self._run = _Run(role, id)
        raw = as_blocks(content)
        blocks = [self._clean(block) for block in raw]
        name = run.extend(raw, blocks)
        self._joined[name] = _Prefix(role, run.blocks, len(run.blocks))
        return blocks

    def get(self, name: str, *, marked: bool) -> dict[str, Json]:
        """Return a message in the form in which it is sent.

        A lone text of a user or the system is sent as a string, unless it has a cache
        marker, whatever form it was recorded in.

        Args:
            name: the hash of the message.
            marked: whether one of its blocks has a cache marker.
        """
        key = name, marked
        if key not in self._sent:
            message = self._stored.get(name) or self._joined[name].message
            self._sent[key] = _as_sent(message, marked)
        return self._sent[key]


@dataclass(slots=True)
class _Run:
    """Records that are joined to one message."""

    role: str
    id: str
    blocks: list[Json] = field(default_factory=list)
    _hash: hashlib._Hash = field(
        default_factory=lambda: hashlib.sha256(b'{"content":[')
    )

    def accepts(self, role: str, id: str) -> bool:
        return role == self.role and (role == "user" or (bool(id) and id == self.id))

    def extend(self, raw: Sequence[Json], clean: Sequence[Json]) -> str:
        """Add blocks and return the hash of the message so far."""
        for i, block in enumerate(raw):
            self._hash.update(b"," if self.blocks or i else b"")
            self._hash.update(_encoded(block))
        self.blocks += clean
        whole = self._hash.copy()
        whole.update(b'],"role":' + _encoded(self.role) + b"}")
        return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The first blocks of a run, joined only if a request refers to them."""

    role: str
    blocks: list[Json]
    count: int

    @property
    def message(self) -> dict[str, Json]:
        return {"role": self.role, "content": self.blocks[: self.count]}


def _as_sent(message: dict[str, Json], marked: bool) -> dict[str, Json]:
    content = message.get("content")
    if message.get("role") not in ("user", "system"):
        return message
    if marked and isinstance(content, str):
        return {**message, "content": as_blocks(content)}
    match content:
        case [{"type": "text", "text": str(text), **more}] if not (marked or more):
            return {**message, "content": text}
    return message


def _encoded(value: Json) -> bytes:
    pieces: list[str] = []
    _write(value, pieces)
    # JavaScript escapes half a surrogate pair too.
    return "".join(pieces).encode("utf-8", "backslashreplace")


def _write(value: Json, pieces: list[str]) -> None:
    match value:
        case str():
            pieces.append(_quoted(value))
        case None | bool():
            pieces.append(_LITERALS[value])
        case float():
            pieces.append(_number(value))
        case dict():
            keys = sorted(value.keys() - {"cache_control"}, key=_utf16)
            for i, key in enumerate(keys):
                pieces.append(f"{',' if i else '{'}{_quoted(key)}:")
                _write(value[key], pieces)
            pieces.append("}" if keys else "{}")
        case list():
            for i, item in enumerate(value):
                pieces.append("," if i else "[")
                _write(item, pieces)
            pieces.append("]" if value else "[]")
        case _:
            pieces.append(str(value))


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _number(value: float) -> str:
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    mantissa, e, exponent = repr(value).partition("e")
    if int(exponent or 0) in _PLAIN_EXPONENTS:
        return f"{Decimal(repr(value)):f}"
    return f"{mantissa}{e}{int(exponent):+d}"
