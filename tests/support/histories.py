"""Writes transcripts in the format of Claude Code."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["MARK", "SHAPE", "SessionLog", "T", "name_of", "shape_hash"]

T = 1_760_000_000.0
MARK = {"type": "ephemeral"}
SHAPE: dict[str, Any] = {
    "system": [{"type": "text", "text": "You help."}],
    "tools": [{"name": "Read", "input_schema": {"type": "object"}}],
}


def name_of(message: dict[str, Any]) -> str:
    """Return the hash of a message without cache markers and unusual numbers."""
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return _sha({**message, "content": content})


def shape_hash(shape: dict[str, Any] = SHAPE) -> str:
    return _sha(shape)


def _sha(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class SessionLog:
    """Writes one session's file; records are one second apart."""

    def __init__(self, path: Path, session: str = "s1-of-the-session", t: float = T):
        self.path = path
        self.session = session
        self.t = t
        self.more: dict[str, Any] = {}
        self._uuids = (f"{path.stem}-u{i}" for i in itertools.count())
        self.last: str | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def raw(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        os.utime(self.path, (self.t, self.t))

    def record(self, kind: str, **fields: Any) -> None:
        self.t += 1
        stamp = datetime.fromtimestamp(self.t, UTC).isoformat().replace("+00:00", "Z")
        line = {"type": kind, "sessionId": self.session, "timestamp": stamp}
        self.raw(json.dumps(line | self.more | fields).encode() + b"\n")

    def say(self, role: str, content: Any, **fields: Any) -> str:
        """Write a record of the conversation, after the last one or ``parentUuid``."""
        uuid = next(self._uuids)
        message = {"role": role, "content": content} | fields.pop("message", {})
        line = {"uuid": uuid, "parentUuid": self.last, "message": message}
        self.record(role, **line | fields)
        self.last = uuid
        return uuid

    def answer(self, id: str, *blocks: Any, request: str | None = None) -> None:
        """Write an answer, one record per block, as the client does."""
        ref = {"requestRef": request} if request else {}
        message = {"id": id, "model": "m", "stop_reason": "end_turn", "usage": {"n": 1}}
        for block in blocks:
            self.say("assistant", [block], message=message, **ref)

    def shape(self) -> None:
        self.record("api-request-shape", shapeHash=shape_hash(), shape=SHAPE)

    def blob(self, message: dict[str, Any]) -> str:
        name = name_of(message)
        self.record("api-request-blob", hash=name, message=message)
        return name

    def request(self, id: str, *tail: str, **fields: Any) -> None:
        line = {
            "id": id,
            "shapeHash": shape_hash(),
            "params": {"model": "m", "max_tokens": 9, "betas": ["b1", "b2"]},
            "keep": 0,
            "tail": tail,
            "cacheControl": [],
            "querySource": "sdk",
        }
        self.record("api-request", **line | fields)
