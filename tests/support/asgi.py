"""Drives an ASGI application without a server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Scope

HOST = (b"host", b"127.0.0.1:8111")


@dataclass(frozen=True)
class Sent:
    """The messages that an application sent."""

    messages: list[Message]

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        pairs = self.messages[0]["headers"]
        return {key.decode(): value.decode() for key, value in pairs}

    @property
    def json(self) -> Any:
        return json.loads(b"".join(m.get("body", b"") for m in self.messages))


def http_scope(**changes: Any) -> Scope:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "POST",
        "path": "/v1/messages",
        "raw_path": b"/v1/messages",
        "query_string": b"",
        "headers": [HOST],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8111),
    }
    return scope | changes


def requests(*chunks: bytes) -> list[Message]:
    """Return a body in chunks, as a server passes it on."""
    last = len(chunks) - 1
    return [
        {"type": "http.request", "body": chunk, "more_body": i < last}
        for i, chunk in enumerate(chunks)
    ]


def drive(
    app: ASGIApp, scope: Scope | None = None, received: Iterable[Message] | None = None
) -> Sent:
    """Send one request; after ``received`` the client sends no more."""
    messages = iter(requests(b"{}") if received is None else received)
    sent: list[Message] = []

    async def receive() -> Message:
        for message in messages:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        with anyio.fail_after(5):
            await app(scope or http_scope(), receive, send)

    anyio.run(run)
    return Sent(sent)
