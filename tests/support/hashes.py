"""Small hashed traces in published formats."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

__all__ = ["mooncake_lines", "weka_session", "write_mooncake", "write_weka"]


def weka_session() -> dict[str, Any]:
    """Return a session: two turns, two of a sub-agent, one with a cut history."""

    def request(t: float, tokens: int, ids: list[int]) -> dict[str, Any]:
        kind = {"t": t, "type": "n", "model": "m", "stop": "tool_use"}
        return {**kind, "in": tokens, "out": 9, "hash_ids": ids}

    agent = {
        "t": 2.0,
        "type": "subagent",
        "agent_id": "agent_001",
        "tool_tokens": 64,
        "system_tokens": 30,
        "requests": [request(0.0, 130, [7, 8]), request(2.0, 200, [7, 8, 9])],
    }
    return {
        "id": "trace_1",
        "block_size": 64,
        "hash_id_scope": "local",
        "tool_tokens": 70,
        "system_tokens": 60,
        "requests": [
            request(0.0, 256, [1, 2, 3, 4]),
            agent,
            request(3.0, 330, [1, 2, 3, 4, 5]),
            request(9.0, 200, [1, 2, 6]),
        ],
    }


def write_weka(path: Path, session: Any = None) -> Path:
    data = json.dumps(weka_session() if session is None else session).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def mooncake_lines() -> list[dict[str, Any]]:
    return [
        {
            "timestamp": 0,
            "input_length": 1100,
            "output_length": 5,
            "hash_ids": [0, 1, 2],
        },
        {
            "timestamp": 1500,
            "input_length": 1536,
            "output_length": 5,
            "hash_ids": [0, 1, 3],
        },
    ]


def write_mooncake(path: Path, lines: list[dict[str, Any]] | None = None) -> Path:
    lines = mooncake_lines() if lines is None else lines
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path
