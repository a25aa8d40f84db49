"""A running server and a plain client, for the tests."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import httpx
import pytest

from mlxlab.models import tiny
from mlxlab.server.server import Options, Server, serve
from mlxlab.web.sse import MessageAccumulator
from tests.support.credential import TOKEN

__all__ = [
    "TOKEN",
    "Client",
    "ask",
    "copy_tiny",
    "raw_request",
    "served",
    "until",
    "words",
]

#: Patience with a busy machine; no step should take this long.
PATIENCE_S = 60.0


class Reachable(Protocol):
    """A server of this process, or of another."""

    @property
    def url(self) -> str: ...


class Client(httpx.Client):
    """Sends the token, waits long, and joins streams into messages."""

    def __init__(self, url: str, token: str = TOKEN) -> None:
        headers = {"x-api-key": token}
        super().__init__(base_url=url, headers=headers, timeout=PATIENCE_S)

    def ask(self, body: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Return the answering message, streamed or not."""
        body = body | changes
        answer = self.post("/v1/messages", json=body)
        assert answer.status_code == 200, answer.text
        if not body.get("stream"):
            return dict(answer.json())
        message = MessageAccumulator()
        message.feed(answer.content)
        assert message.message is not None
        return message.message

    def refusal(self, body: dict[str, Any], **changes: Any) -> tuple[int, str]:
        """Return status and message of an error, after checking its shape."""
        answer = self.post("/v1/messages", json=body | changes)
        return answer.status_code, error_of(answer)["message"]


def error_of(answer: httpx.Response) -> dict[str, str]:
    """Return the error in a response, after checking its shape."""
    value = answer.json()
    assert set(value) == {"type", "error", "request_id"}, value
    assert value["type"] == "error"
    assert set(value["error"]) == {"type", "message"}
    assert value["request_id"] == answer.headers["request-id"]
    return dict(value["error"])


@contextmanager
def served(
    model: str | None = None,
    strategy: str | None = None,
    *,
    aliases: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[Server]:
    """Run a server whose endpoint file is in its own home folder."""
    with TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", home)
        file = Path(home, "aliases.json")
        if aliases is not None:
            file.write_text(json.dumps(aliases))
        with serve(
            model,
            strategy,
            aliases=file if aliases is not None else None,
            options=Options(**{"token": TOKEN, **options}),
        ) as server:
            yield server
        assert not list(Path(home).glob(".cache/mlxlab/endpoints/*.json"))


def copy_tiny(folder: Path, **config: Any) -> str:
    """Copy the bundled model, with other settings."""
    shutil.copytree(tiny.PATH, folder, ignore=shutil.ignore_patterns("*.py", "__*"))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(folder)


def ask(content: Any = "Why?", **changes: Any) -> dict[str, Any]:
    """Return a short request."""
    messages = [{"role": "user", "content": content}]
    return {"model": "default", "max_tokens": 4, "messages": messages} | changes


def words(n: int, first: int = 0) -> str:
    """Return a text of about four tokens for each of ``n``."""
    return " ".join(f"w{i}" for i in range(first, first + n))


def raw_request(server: Reachable, body: dict[str, Any]) -> socket.socket:
    """Send a request on a socket that the test may close at any time."""
    data = json.dumps(body).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    head = (
        f"POST /v1/messages HTTP/1.1\r\nHost: {host}:{port}\r\nx-api-key: {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    return connection


def until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> float:
    """Wait for an effect of another thread; return the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it does not happen"
        threading.Event().wait(0.005)
    return time.monotonic() - begun
