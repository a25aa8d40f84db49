"""Connections that send no whole request cost little and starve no client."""

from __future__ import annotations

import logging
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import anyio
import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from mlxlab.web.background import BackgroundServer
from mlxlab.web.connections import BACKLOG, affordable
from mlxlab.web.guard import Bounds
from tests.support.flood import HALF, connect, flooding

SMALL = Bounds(header_s=0.4, idle_s=0.4, unread_s=0.4, connections=8)
WHOLE = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
KNOWN = b"GET /known HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PATIENCE_S = 20.0


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without reading a body; knows who asks for /known and /wait."""
    if scope["type"] != "http":
        return
    if scope["path"] in ("/known", "/wait"):
        scope["credential"] = "a"
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/wait":
        message: Message = {"type": "http.response.body", "body": b"o"}
        await send({**message, "more_body": True})
        await anyio.sleep(2)
        await send({"type": "http.response.body", "body": b"k"})
    else:
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer(app, bounds=SMALL) as server:
        yield server


def end_of(connection: socket.socket) -> float:
    """Seconds until the server closes."""
    begun = time.monotonic()
    connection.settimeout(PATIENCE_S)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - begun


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def answered(connection: socket.socket, data: bytes = WHOLE) -> bool:
    connection.sendall(data)
    connection.settimeout(PATIENCE_S)
    text = b""
    while not text.endswith(b"\r\n\r\nok"):
        part = connection.recv(4096)
        if not part:
            return False
        text += part
    return True


@pytest.mark.parametrize("half", [b"", b"G", HALF])
def test_headers_that_are_not_whole_in_time_end_the_connection(
    server: BackgroundServer, half: bytes
) -> None:
    with connect(server.port, half) as client:
        assert 0.3 < end_of(client) < 3
    warned = ["closed: headers incomplete after 0.4 s"] if half else []
    assert list(server.log) == warned


def test_bytes_that_drip_win_no_time(server: BackgroundServer) -> None:
    with connect(server.port, HALF) as client:

        def drip() -> None:
            for _ in range(200):
                try:
                    client.sendall(b"a")
                except OSError:
                    return
                time.sleep(0.02)

        dripping = Thread(target=drip)
        dripping.start()
        assert end_of(client) < 3
        dripping.join()


def test_an_idle_connection_ends(server: BackgroundServer) -> None:
    with connect(server.port) as client:
        assert answered(client)
        assert answered(client)
        assert 0.3 < end_of(client) < 3


def test_half_a_request_after_a_whole_one_ends(server: BackgroundServer) -> None:
    with connect(server.port, WHOLE + HALF) as client:
        assert end_of(client) < 3
    assert "closed: headers incomplete after 0.4 s" in list(server.log)


def test_the_rest_of_a_body_that_nobody_reads_has_little_time(
    server: BackgroundServer,
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
    with connect(server.port) as client:
        assert answered(client, head % 10**12 + b"a")
        client.sendall(b"a" * 100_000)
        assert end_of(client) < 3
    with connect(server.port) as client:
        assert answered(client, head % 10)
        client.sendall(b"a" * 10)
        assert answered(client), "a body that came after all ends nothing"
        assert end_of(client) < 3


def test_an_answer_has_the_time_that_it_takes(server: BackgroundServer) -> None:
    assert httpx.get(f"{server.url}/wait", timeout=PATIENCE_S).text == "ok"


def test_the_oldest_without_a_request_makes_room() -> None:
    patient = replace(SMALL, header_s=30, idle_s=30)
    with BackgroundServer(app, bounds=patient) as server:
        known, idle = connect(server.port), connect(server.port)
        assert answered(known, KNOWN)
        assert answered(idle)
        halves = [connect(server.port, HALF) for _ in range(6)]
        time.sleep(0.2)
        assert all(map(is_open, halves))
        newest = connect(server.port)
        assert answered(newest)
        time.sleep(0.2)
        assert [is_open(half) for half in halves] == [False] + [True] * 5
        assert answered(idle)
        assert answered(known, KNOWN)
        halves += [connect(server.port, HALF) for _ in range(20)]
        time.sleep(0.2)
        assert sum(map(is_open, halves)) == 5, "idle ones go after half-sent ones"
        assert answered(idle)
        assert answered(newest)
        others = []
        for _ in range(7):
            others.append(connect(server.port))
            assert answered(others[-1])
        time.sleep(0.2)
        assert answered(known, KNOWN), "whom we know goes last"
        assert not is_open(idle)
        for connection in (known, idle, newest, *halves, *others):
            connection.close()


def test_what_is_answered_is_never_dropped() -> None:
    with BackgroundServer(app, bounds=SMALL) as server:
        wait = WHOLE.replace(b"/ ", b"/wait ", 1)
        waiting = [connect(server.port, wait) for _ in range(8)]
        time.sleep(0.2)
        with connect(server.port, WHOLE) as refused:
            assert end_of(refused) < 1
        for client in waiting:
            assert answered(client, b"")
            client.close()


def test_nothing_advises_and_nothing_is_printed(
    server: BackgroundServer, capfd: pytest.CaptureFixture[str]
) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    for _ in range(30):
        with connect(server.port) as client:
            assert answered(client, WHOLE[:-2] + upgrade)
        with connect(server.port, b"\x16\x03\x01nonsense\r\n\r\n") as client:
            end_of(client)
    lines = list(server.log)
    assert len(lines) == 20
    assert lines[-1] == "Invalid HTTP request received. (… 20 more like it)"
    assert not any("pip" in line or "upgrade" in line for line in lines)
    assert capfd.readouterr() == ("", "")


def test_nonsense_behind_an_answer_fails_nothing(server: BackgroundServer) -> None:
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(server.port) as client:
        assert answered(client, chunked)
        client.sendall(b"nonsense\r\n")
        assert end_of(client) < 3
    with connect(server.port, chunked + b"nonsense\r\n") as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
        end_of(client)
    assert not any("Traceback" in line for line in server.log)


def test_other_threads_log_as_before(
    server: BackgroundServer, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("asyncio").error("ours")
    for _ in range(30):
        logging.getLogger("uvicorn.error").error("ours too")
    assert [record.message for record in caplog.records].count("ours too") == 30
    assert caplog.records[0].message == "ours"
    assert not server.log


# File descriptors


def test_the_limit_of_files_is_raised_no_more_than_needed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = len(list(Path("/dev/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (others + 10, before[1]))
        assert affordable(SMALL) == SMALL
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert others + 8 + BACKLOG < raised[0] < others + 8 + BACKLOG + 100
        assert affordable(SMALL) == SMALL
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from mlxlab.web.background import BackgroundServer
from tests.web.test_connections import app
held = []
with BackgroundServer(app) as server:
    print(server.port, flush=True)
    for line in sys.stdin:
        if line == "exhaust\\n":
            while True:
                try:
                    held.append(open("/dev/null"))
                except OSError:
                    break
        elif line == "release\\n":
            while held:
                held.pop().close()
        print(sum(map(len, server.log)), len(server.log), flush=True)
"""


class Served:
    """A server in a process that may open few files."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FEW_FILES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def tell(self, word: str = "") -> tuple[int, int]:
        """Characters and lines of its log once it has obeyed."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        characters, lines = self.process.stdout.readline().split()
        return int(characters), int(lines)

    def end(self) -> str:
        """What it printed."""
        return self.process.communicate(timeout=PATIENCE_S)[1]


def test_few_files_lower_the_number_of_connections() -> None:
    served = Served()
    try:
        with flooding(served.port, 600) as flood:
            assert flood.wait() == (600, 600)
            url = f"http://127.0.0.1:{served.port}"
            assert httpx.get(url, timeout=PATIENCE_S).text == "ok"
        characters, lines = served.tell()
        assert 0 < characters < 10_000
        assert lines < 40
        assert served.end() == ""
    finally:
        served.process.kill()


def test_no_files_left_is_a_line_and_no_end() -> None:
    served = Served()
    try:
        served.tell("exhaust")
        waiting = [connect(served.port, WHOLE) for _ in range(20)]
        time.sleep(1.5)
        characters, lines = served.tell("release")
        assert 0 < lines < 15
        assert characters < 40_000
        assert all(answered(client, b"") for client in waiting)
        for client in waiting:
            client.close()
        assert served.end() == ""
    finally:
        served.process.kill()
