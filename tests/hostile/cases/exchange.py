"""A case of HTTP: what is sent over a connection, and when the client leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from tests.support.credential import TOKEN

__all__ = ["Exchange", "Exchanges", "posted"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a client does on a connection of its own.

    Attributes:
        pieces: bytes that are sent, each after a moment.
        whole: whether they are one complete request, so an answer has to come.
        leaves: bytes of the answer after which the client hangs up; None to read all.
    """

    pieces: tuple[bytes, ...]
    whole: bool = True
    leaves: int | None = None


Exchanges: TypeAlias = Callable[[Random], tuple[Exchange, ...]]
"""Makes the exchanges of a case. Where there are two, both get one status."""


def posted(path: str, body: bytes) -> bytes:
    """Return a request with a body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
