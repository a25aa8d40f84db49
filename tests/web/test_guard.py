"""Attacks by web pages and hostile clients are refused before any other code runs."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from threading import Event
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from mlxlab.web.background import BackgroundServer
from mlxlab.web.guard import Bounds, Guard, is_loopback
from tests.support.asgi import HOST, Sent, drive, http_scope, requests

SMALL = Bounds(header_lines=5, header_bytes=200, body_bytes=10, body_s=0.1)


class App:
    """Answers 200 and remembers what it received."""

    def __init__(self) -> None:
        self.received: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.received.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def asked(*headers: tuple[bytes, bytes], **changes: Any) -> Sent:
    """The answer to a request with these headers; no refusal reaches the app."""
    app = App()
    scope = http_scope(headers=list(headers), **changes)
    sent = drive(Guard(app, ["Studio.local", "0.0.0.0"]), scope)
    assert len(app.received) == (sent.status == 200)
    return sent


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1:8111",
        b"127.0.0.1",
        b"127.8.9.1:80",
        b"localhost:8111",
        b"LOCALHOST",
        b"[::1]:8111",
        b"[0:0:0:0:0:0:0:1]",
        b"[::ffff:127.0.0.1]:8111",
        b"studio.local:8111",
        b"0.0.0.0:8111",
        b"localhost:1234",  # a forwarded port
    ],
)
def test_own_names_are_let_in(host: bytes) -> None:
    assert asked((b"host", host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8111",
        b"127.0.0.1.evil.example:8111",
        b"localhost.evil.example",
        b"evil.example.localhost",
        b"evillocalhost",
        b"studio.local.evil.example",
        b"a/?x=",
        b"127.0.0.1/?x=",
        b"127.0.0.1#",
        b"evil.example#127.0.0.1",
        b"localhost\\@evil.example",
        b"user@127.0.0.1:8111",
        b"127.0.0.1:8111@evil.example",
        b"127.0.0.1:port",
        b"127.0.0.1:",
        b"127.0.0.1, evil.example",
        b"127.1",
        b"0x7f.0.0.1",
        b"192.168.1.7:8111",
        b"[::2]:8111",
        b"[::1",
        b"::1",
        b"[fe80::1%25lo]",
        b" localhost",
        b"localhost\n",
        b"",
    ],
)
def test_a_foreign_host_is_refused(host: bytes) -> None:
    sent = asked((b"host", host))
    assert sent.status == 403
    assert sent.json["error"]["type"] == "permission_error"
    assert sent.json["request_id"] == sent.headers["request-id"]


def test_there_is_one_host() -> None:
    assert asked().status == 403
    assert asked(HOST, (b"host", b"evil.example")).status == 403
    assert asked(HOST, (b"Host", HOST[1])).status == 403


def test_the_address_that_was_reached_is_a_name_too() -> None:
    reached = ("192.168.1.7", 8111)
    assert asked((b"host", b"192.168.1.7:8111"), server=reached).status == 200
    assert asked((b"host", b"192.168.1.8:8111"), server=reached).status == 403
    assert asked((b"host", b"evil.example"), server=reached).status == 403
    assert asked((b"host", b"[fd00::7]"), server=("fd00:0::7", 8111)).status == 200
    assert asked(HOST, server=None).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example",
        b"http://127.0.0.1:8111.evil.example",
        b"http://127.0.0.1:81110",
        b"http://127.0.0.1",
        b"http://localhost:8111",
        b"https://127.0.0.1:8111",
        b"http://127.0.0.1:8111/",
        b"http://127.0.0.1:8111 http://evil.example",
        b"vscode-webview://x",
        b"file://",
        b"null",
        b"*",
        b"",
    ],
)
def test_a_foreign_origin_is_refused_and_told_nothing(origin: bytes) -> None:
    preflight = (b"access-control-request-method", b"POST")
    for method in ("GET", "POST", "OPTIONS"):
        sent = asked(HOST, (b"origin", origin), preflight, method=method)
        assert sent.status == 403
        assert not [name for name in sent.headers if name.startswith("access-control")]


def test_the_own_origin_is_let_in_without_cors() -> None:
    own = (b"origin", b"http://127.0.0.1:8111")
    sent = asked(HOST, own)
    assert sent.status == 200
    assert not sent.headers
    assert asked(HOST, own, (b"origin", b"http://evil.example")).status == 403


@pytest.mark.parametrize(
    "target", [b"http://evil.example/v1/messages", b"@evil.example/v1", b"*", b""]
)
def test_a_target_is_a_path(target: bytes) -> None:
    assert asked(HOST, raw_path=target).status == 400


def test_too_many_or_too_large_headers_are_refused() -> None:
    def status(*headers: tuple[bytes, bytes]) -> int:
        return drive(Guard(App(), bounds=SMALL), http_scope(headers=headers)).status

    assert status(HOST, *[(b"a", b"")] * 4) == 200
    assert status(HOST, *[(b"a", b"")] * 5) == 431
    size = 200 - sum(map(len, HOST))
    assert status(HOST, (b"a", b"b" * (size - 1))) == 200
    assert status(HOST, (b"a", b"b" * size)) == 431


@pytest.mark.parametrize(
    ("length", "status"),
    [(b"10", 200), (b"11", 413), (b"9" * 20, 413), (b"9" * 21, 400), (b"-1", 400)],
)
def test_a_body_is_refused_by_its_length(length: bytes, status: int) -> None:
    app = App()
    headers = [HOST, (b"content-length", length)]
    sent = drive(Guard(app, bounds=SMALL), http_scope(headers=headers))
    assert sent.status == status
    assert len(app.received) == (status == 200)


def test_a_body_without_a_length_is_counted() -> None:
    def status(*chunks: bytes) -> int:
        return drive(Guard(App(), bounds=SMALL), received=requests(*chunks)).status

    assert status(b"12345", b"67890", b"") == 200
    assert status(b"12345", b"67890", b"1") == 413


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    app = App()
    sent = drive(Guard(app, bounds=SMALL), received=requests(b"1", b"2")[:1])
    assert (sent.status, sent.headers["connection"]) == (408, "close")
    assert not app.received


def test_a_refusal_carries_the_request_id_that_was_given() -> None:
    sent = drive(Guard(App()), http_scope(headers=[], request_id="req_7"))
    assert sent.json["request_id"] == sent.headers["request-id"] == "req_7"


@given(st.lists(st.binary(max_size=3), min_size=1, max_size=5))
def test_the_body_arrives_whole_and_once(chunks: list[bytes]) -> None:
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.extend([await receive(), await receive()])

    gone: Message = {"type": "http.disconnect"}
    drive(Guard(app), received=[*requests(*chunks), gone])
    assert received == [*requests(b"".join(chunks)), gone]


def test_a_client_that_leaves_within_its_body_reaches_nobody() -> None:
    app = App()
    received = [*requests(b"1", b"2")[:1], {"type": "http.disconnect"}]
    assert not drive(Guard(app), received=received).messages
    assert not app.received


def test_nothing_but_http_passes() -> None:
    with pytest.raises(TypeError, match="websocket"):
        drive(Guard(App()), http_scope(type="websocket"))


def test_loopback_is_known_by_name_and_address() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.3.2.1", "::1")))
    assert not any(map(is_loopback, ("", "a", "localhost.", "10.0.0.1", "127.1")))


HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


class Waiting:
    """Begins to answer and then waits for the client to leave."""

    def __init__(self) -> None:
        self.begun, self.left = Event(), Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        assert (await receive())["body"] == b"{}"
        self.begun.set()
        assert await receive() == {"type": "http.disconnect"}
        self.left.set()


def connected(server: BackgroundServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_a_disconnect_is_seen_behind_the_guard() -> None:
    app = Waiting()
    with BackgroundServer(Guard(app)) as server:
        with connected(server) as client:
            client.sendall(HEAD % 2 + b"{}")
            assert app.begun.wait(5)
            assert not app.left.is_set()
        assert app.left.wait(2)


class Endless:
    """A streamed answer that ends only when its client leaves."""

    def __init__(self) -> None:
        self.left = Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await StreamingResponse(self.chunks())(scope, receive, send)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            yield b"a"
            await anyio.sleep_forever()
        finally:
            self.left.set()


def test_a_stream_ends_with_its_client() -> None:
    app = Endless()
    with BackgroundServer(Guard(app)) as server:
        with connected(server) as client:
            client.sendall(HEAD % 2 + b"{}")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
            assert not app.left.is_set()
        assert app.left.wait(2)


@pytest.mark.parametrize("part", [b"", b"{"])
def test_a_slow_body_is_answered_and_the_connection_closed(part: bytes) -> None:
    with (
        BackgroundServer(Guard(App(), bounds=SMALL)) as server,
        connected(server) as client,
    ):
        begun = time.monotonic()
        client.sendall(HEAD % 5 + part)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 0.1 <= time.monotonic() - begun < 2
