"""Thousands of half-sent requests without a token keep no client from its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mlxlab.server.server import Server
from tests.support.endpoint import TOKEN, Client, ask, served, until
from tests.support.flood import HALF, connect, flooding

#: What an honest client waits at most, on a busy machine too.
SOON_S = 4.0


@pytest.fixture
def server() -> Iterator[Server]:
    with served() as server, Client(server.url) as client:
        client.ask(ask())  # what is made once
        yield server


def port_of(server: Server) -> int:
    return server.endpoint.port


def files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def attend(server: Server) -> float:
    """The longest that a client waits who connects anew for each request."""
    longest = 0.0
    for path in ("/health", "/v1/messages"):
        begun = time.monotonic()
        with Client(server.url) as client:
            if path == "/health":
                assert client.get(path).status_code == 200
            else:
                assert client.ask(ask())["type"] == "message"
        longest = max(longest, time.monotonic() - begun)
    return longest


def flood(server: Server, number: int, capfd: pytest.CaptureFixture[str]) -> None:
    threads, before = threading.active_count(), files()
    with flooding(port_of(server), number) as attack:
        during = attend(server)
        made, tried = attack.wait()
        assert made > tried // 2
        assert tried > 256, "too few files for an attack"
        waited = [during, *(attend(server) for _ in range(3))]
        assert max(waited) < SOON_S
        assert files() < before + 300
    until(lambda: files() <= before + 3, 20)
    assert threading.active_count() <= threads
    lines = list(server._http.log)
    assert sum(map(len, lines)) < 64 * 2**10
    assert any("more like it" in line for line in lines)
    assert capfd.readouterr() == ("", "")


def test_half_sent_requests_starve_nobody(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    flood(server, 2300, capfd)


@pytest.mark.slow
def test_many_half_sent_requests_starve_nobody(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    flood(server, 15_000, capfd)


def test_a_stream_lives_through_a_flood(server: Server) -> None:
    with (
        Client(server.url) as client,
        client.stream(
            "POST", "/v1/messages", json=ask(stream=True, max_tokens=400)
        ) as answer,
        flooding(port_of(server), 600) as attack,
    ):
        attack.wait()
        assert any("message_stop" in line for line in answer.iter_lines())


def test_wrong_tokens_cost_a_line_for_all(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for number in range(200):
            assert client.get(f"/v1/{number}").status_code == 401
    lines = [line for line in server._http.log if " 401" in line]
    assert len(lines) == 10
    assert lines[-1] == "GET /v1/9 401 (… 190 more like it)"


@pytest.mark.parametrize("path", ["/health", "/v1/messages"])
def test_without_a_token_no_body_is_waited_for(server: Server, path: str) -> None:
    """What is open is answered by its headers alone, and the rest is refused."""
    method = b"GET" if path == "/health" else b"POST"
    head = HALF.replace(b"POST /v1/messages", method + b" " + path.encode())
    data = head + b"a\r\nContent-Length: 1000000\r\n\r\n{"
    begun = time.monotonic()
    with connect(port_of(server), data) as client:
        answer = client.recv(4096)
        assert time.monotonic() - begun < SOON_S
    status = b"200" if path == "/health" else b"401"
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert TOKEN.encode() not in answer
