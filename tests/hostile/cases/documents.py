"""Small valid files of every format that commands read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlxlab.replay.export import export_trace
from mlxlab.traces.schema import body_hash
from mlxlab.traces.trace import Exchange, Response, Trace
from mlxlab.traces.writer import write_trace
from mlxlab.web.sse import frames
from tests.support.hashes import mooncake_lines, weka_session
from tests.support.histories import SessionLog, name_of

__all__ = ["Document", "documents", "rehashed"]

T = 1_760_000_000.0
_SESSION = "02281126-eb86-4b55-a97f-a1372eeac4b3"
_HEADERS = {"x-claude-code-session-id": _SESSION, "anthropic-version": "2023-06-01"}
_ANSWER: dict[str, Any] = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "Well.", "signature": ""},
        {"type": "tool_use", "id": "t", "name": "Read", "input": {"a": [1, "ü"]}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 12, "output_tokens": 9},
}


@dataclass(frozen=True, slots=True)
class Document:
    """Files of one format.

    Attributes:
        format: its name.
        files: the JSON value of each line, by the file's name.
        path: what a command is given, a file or the folder.
    """

    format: str
    files: Mapping[str, list[Any]]
    path: str


def _request(turns: int) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Fix it."}]
    for turn in range(turns):
        result = {"type": "tool_result", "tool_use_id": "t", "content": f"line {turn}"}
        messages += [
            {"role": "assistant", "content": _ANSWER["content"]},
            {"role": "user", "content": [result]},
        ]
    return {
        "model": "m",
        "system": [
            {
                "type": "text",
                "text": "You help.",
                "cache_control": {"type": "ephemeral"},
            }
        ],
        "tools": [
            {"name": "Read", "description": "Reads.", "input_schema": {"b": {"c": 1}}}
        ],
        "messages": messages,
        "max_tokens": 100,
        "metadata": {"user_id": json.dumps({"session_id": _SESSION})},
    }


def _trace() -> Trace:
    exchanges = [
        Exchange(
            turn,
            T + 10 * turn,
            "POST",
            "/v1/messages?beta=true",
            _HEADERS,
            _request(turn),
            Response(T + 10 * turn + 2, 200, 0.5, _ANSWER),
        )
        for turn in range(2)
    ]
    other = Exchange(2, T + 30, "GET", "/v1/models", {}, None)
    return Trace("own", (*exchanges, other))


def _lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def _history(folder: Path) -> Mapping[str, list[Any]]:
    log = SessionLog(folder / "p" / "s.jsonl")
    log.shape()
    hello = {"role": "user", "content": "Hello."}
    log.request("r1", log.blob(hello))
    log.say("user", "Hello.")
    log.answer("m1", {"type": "text", "text": "Yes."}, request="r1")
    log.say("user", "Go on.")
    log.request("r2", name_of({"role": "user", "content": "Go on."}), keep=1, base="r1")
    log.answer("m2", *_ANSWER["content"])
    return {"p/s.jsonl": _lines(log.path.read_bytes())}


def _telemetry() -> Mapping[str, list[Any]]:
    text = "x-anthropic-billing-header: cc_version=2.1.330.0aa; cc_is_subagent=true;"
    body = {**_request(1), "betas": ["b1"], "system": [{"type": "text", "text": text}]}
    line = {
        "timestamp": "2025-10-09T08:53:21+00:00",
        "session_id": "session-1",
        "query_source": "sdk",
        "request_file": "a.request.json",
        "response_file": "a-a.response.json",
    }
    return {
        "a.request.json": [body],
        "a-a.response.json": [_ANSWER],
        "index.jsonl": [line],
    }


def _captured() -> list[Any]:
    line = {"method": "post", "path": "/v1/messages?beta=true", "headers": _HEADERS}
    answer = {"response": _ANSWER}
    return [{"t": T + t, **line, "body": _request(t), **answer} for t in range(2)]


def _logged() -> list[Any]:
    asked = {
        "timestamp": T,
        "method": "post",
        "url": "https://api.example.com/v1/messages?beta=true",
        "headers": _HEADERS,
        "body": _request(1),
    }
    events = b"".join(frames(_ANSWER)).decode()
    answers: list[dict[str, Any]] = [
        {"body_raw": events},
        {"body": _ANSWER},
        {"body_raw": "no"},
    ]
    rest = {"timestamp": T + 1, "status_code": 200, "headers": {}}
    return [{"request": asked, "response": rest | answer} for answer in answers]


_SCRIPT = {
    "conversations": [
        {
            "match": "Fix.*it",
            "replies": [[{"type": "text", "text": "Done."}], _ANSWER["content"][:1]],
        }
    ],
    "otherwise": [{"type": "text", "text": "Well."}],
    "latency_s": 0.1,
}
_ALIASES = {
    "aliases": {
        "default": {"model": "tiny", "strategy": "paged:block=32", "rules": "all"},
        "fast": {
            "thinking": "off",
            "sampling": {"temperature": 0.5, "top_k": 3},
            "max_thinking_tokens": 9,
        },
    },
    "tiers": {"haiku": "fast"},
}


@cache
def documents() -> Mapping[str, Document]:
    """Return the documents by format."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_trace(_trace(), folder / "own.jsonl")
        export_trace(
            folder / "own.jsonl", folder / "hashed.jsonl", salt="s", progress=False
        )
        own, hashed = (
            _lines((folder / f"{kind}.jsonl").read_bytes())
            for kind in ("own", "hashed")
        )
        found: dict[str, tuple[Mapping[str, list[Any]], str]] = {
            "own": ({"own.jsonl": own}, "own.jsonl"),
            "hashed": ({"hashed.jsonl": hashed}, "hashed.jsonl"),
            "weka": ({"weka.json": [weka_session()]}, "weka.json"),
            "mooncake": ({"mooncake.jsonl": mooncake_lines()}, "mooncake.jsonl"),
            "claude-code": (_history(folder), "p"),
            "telemetry": (_telemetry(), "."),
            "capture": ({"capture.jsonl": _captured()}, "capture.jsonl"),
            "claude-trace": ({"log-1.jsonl": _logged()}, "log-1.jsonl"),
            "script": ({"script.json": [_SCRIPT]}, "script.json"),
            "aliases": ({"aliases.json": [_ALIASES]}, "aliases.json"),
        }
    return {kind: Document(kind, *parts) for kind, parts in found.items()}


def rehashed(lines: list[Any], data: bytes) -> bytes:
    """Return lines of a trace with the hashes that their bodies have now.

    Otherwise a reader finds no other fault in a body than its hash.
    """
    for line in lines:
        try:
            old, new = line["hash"].encode(), body_hash(line["body"]).encode()
        except (LookupError, TypeError, ValueError, AttributeError):
            continue  # not a body, or too odd to have a hash
        data = data.replace(old, new)
    return data
