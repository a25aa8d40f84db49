"""Faults of JSON values, of the lines of a file, and of bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

__all__ = ["NASTY", "break_bytes", "break_value", "encoded", "places"]

#: Texts that stand for JSON that Python does not write.
_RAW: dict[str, bytes] = {
    "\ue000": b"NaN",
    "\ue001": b"-Infinity",
    "\ue002": b"1e999",
    "\ue003": b"9" * 5000,
    "\ue004": b"[" * 3000 + b"]" * 3000,
    "\ue005": b'{"a":' * 700 + b"1" + b"}" * 700,
    "\ue006": b'"\xff"',
    "\ue007": b"-0",
}
#: Values that are seldom expected.
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**53 + 1, 2**64, 2**70, -(2**63) - 1),
    *(1e308, -1e308, 1e-320, 0.5, "1", "", "a", "\ud800", "\0", "\u202e", "\x1b[2J"),
    *("\U0010ffff", "<|im_end|>", "{{ 1 / 0 }}", "a" * 5000, " " * 5000, "[/bold]["),
    *("2026-01-01T00:00:00Z", "//[", "http://[", "/v1/messages?" + "a" * 300, "../.."),
    *([], {}, [[]], [1, "a", None], {"": ""}, {"type": "text"}, {"type": []}),
    *("any", "none", "tool", "enabled", "disabled", "object", "pattern", "$ref"),
    *_RAW,
    {"type": "text", "text": None},
    {"type": "image", "source": {}},
    {"type": "tool_use", "id": "", "name": "", "input": {"a": {"b": ["\ud800"]}}},
    {"type": "enabled", "budget_tokens": 2**40},
    {"type": "string", "pattern": "((a*)*)*b", "minLength": 10**9},
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
)
_KEYS = ("\ud800", "", "type", "a" * 300, "\x1b[2J", "[/x]", "__class__")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from places(value[key])


def break_value(value: Any, chance: Random) -> None:
    """Put a fault into a JSON value, somewhere; near its surface as often as deep."""
    container, key = _place(value, chance)
    if container is None:
        return
    inner = container[key]
    fault = chance.randrange(9)
    if fault == 0:
        del container[key]
    elif fault == 1 and isinstance(container, list):
        container.extend([inner] * 20)
    elif fault == 2 and isinstance(container, dict):
        container[chance.choice(_KEYS)] = inner
    elif fault == 3:
        other, own = chance.choice(list(places(value)))
        container[key] = copy.deepcopy(other[own])
    elif fault == 4 and isinstance(inner, dict | list):
        inner.clear()
    elif fault == 5 and isinstance(inner, int | float):
        container[key] = inner * chance.choice((-1, 0, 2, 1000, 2**40, 0.5))
    else:
        container[key] = copy.deepcopy(chance.choice(NASTY))


def _place(value: Any, chance: Random) -> tuple[Any, Any]:
    """Return a container in a value and a key of it; None for both if there is none."""
    container, key = None, None
    while isinstance(value, dict | list) and value:
        if container is not None and chance.random() < 0.35:
            break
        container = value
        key = chance.choice(
            list(value) if isinstance(value, dict) else range(len(value))
        )
        value = container[key]
    return container, key


def encoded(value: Any) -> bytes:
    """Return a value as JSON, also what JSON does not have."""
    data = json.dumps(value, separators=(",", ":")).encode()
    if b"\\ue00" in data:
        for text, raw in _RAW.items():
            data = data.replace(json.dumps(text).encode(), raw)
    return data


def break_bytes(data: bytes, chance: Random) -> bytes:
    """Return bytes with a fault somewhere."""
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 2, 8, 100, 5000)))
    match chance.randrange(9):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + chance.randbytes(end - at) + data[end:]
        case 3:
            return data[:at] + data[at:end] * 3 + data[end:]
        case 4:
            return data[:at] + chance.choice(_PIECES) + data[at:]
        case 5:
            flipped = bytes(b ^ 1 << chance.randrange(8) for b in data[at : at + 1])
            return data[:at] + flipped + data[at + 1 :]
        case 6:
            return b"\xef\xbb\xbf" + data
        case 7:
            return data.decode("utf-8", "replace").encode("utf-16")
        case _:
            return data.replace(b"\n", chance.choice((b"\r\n", b"\n\n", b"", b" ")))


_PIECES = (
    *(b"\0", b"\xff", b"\r", b"\n", b'"', b"{", b"}", b"[", b"]", b",", b"\\", b"\\u"),
    *(b" " * 100_000, b"\n" * 1000, b"\x1b[31m", b"\x1f\x8b", b"NaN", b"1e400"),
)
