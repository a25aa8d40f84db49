"""An endpoint starts and stops, and prints nothing."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from threading import Thread

import anyio
import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from mlxlab.errors import ServerError
from mlxlab.web.background import BackgroundServer, wait_for_signal


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers 200, fails at /fail and never ends at /wait."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/fail":
        raise ValueError("on purpose")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/wait":
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await anyio.sleep_forever()
    await send({"type": "http.response.body", "body": b"hello"})


def test_it_answers_while_the_block_runs() -> None:
    with BackgroundServer(app) as server:
        assert server.is_alive
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert httpx.get(server.url).text == "hello"
        assert not {"server", "date"} & set(httpx.get(server.url).headers)
        assert server.start() is server
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """The kernel would hold its second part back for 40 ms."""
    with BackgroundServer(app) as server, httpx.Client() as client:
        seconds = []
        for _ in range(20):
            begun = time.monotonic()
            client.get(server.url)
            seconds.append(time.monotonic() - begun)
    assert min(seconds) < 0.03


def test_a_stop_may_come_early_twice_and_before_a_restart() -> None:
    server = BackgroundServer(app)
    server.stop()
    assert not server.is_alive
    with pytest.raises(ServerError, match="start it"):
        server.url  # noqa: B018
    for _ in range(2):
        server.start()
        assert httpx.get(server.url).text == "hello"
        server.stop()
        server.stop()
        assert not server.is_alive


def test_a_stop_does_not_wait_for_open_streams() -> None:
    with (
        httpx.Client() as client,
        BackgroundServer(app) as server,
        client.stream("GET", f"{server.url}/wait") as answer,
    ):
        chunks = answer.iter_raw()
        assert next(chunks) == b"a"
        stopping = Thread(target=server.stop)
        stopping.start()
        stopping.join(5)
        assert not stopping.is_alive()
        with pytest.raises(httpx.RemoteProtocolError):
            next(chunks)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_in_use_is_an_error(host: str) -> None:
    with BackgroundServer(app, host) as first:
        assert httpx.get(first.url).text == "hello"
        second = BackgroundServer(app, host, first.port)
        with pytest.raises(ServerError, match=f"{first.port}: .*; give a free port"):
            second.start()
        assert not second.is_alive
        assert first.is_alive


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("127.0.0.1", 70000)])
def test_an_address_of_another_machine_is_an_error(host: str, port: int) -> None:
    with pytest.raises(ServerError, match="give a free port"):
        BackgroundServer(app, host, port).start()


def test_an_application_that_cannot_start_says_why() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        failed: Message = {"type": "lifespan.startup.failed", "message": "a\nno model"}
        await send(failed)

    server = BackgroundServer(broken)
    with pytest.raises(ServerError, match="did not start: no model"):
        server.start()
    assert not server.is_alive


def test_responses_are_logged_without_secrets_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with BackgroundServer(app) as server, BackgroundServer(app) as other:
        httpx.get(f"{server.url}/v1/a%20b?key=secret", headers={"x-api-key": "secret"})
        httpx.get(f"{server.url}/fail")
        httpx.get(f"{server.url}/{'a' * 1000}")
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET http://me:secret@host/ HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        lines = list(server.log)
    assert lines[0] == "GET /v1/a%20b 200"
    assert lines[1].startswith("Exception in ASGI application")
    assert lines[1].endswith("ValueError: on purpose")
    assert lines[2].startswith("GET /aaa")
    assert len(lines[2]) < 250
    assert lines[3] == "GET - 200"
    assert not any("secret" in line for line in lines)
    assert not other.log
    assert capfd.readouterr() == ("", "")


def test_the_log_is_bounded_and_a_stop_takes_its_handler_away() -> None:
    handlers = list(logging.getLogger("uvicorn.error").handlers)
    with BackgroundServer(app) as server:
        assert server.log.maxlen
        assert len(logging.getLogger("uvicorn.error").handlers) == len(handlers) + 1
    assert logging.getLogger("uvicorn.error").handlers == handlers


def test_headers_without_end_are_refused() -> None:
    with (
        BackgroundServer(app) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 70_000)
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
        assert "Invalid HTTP request" in server.log[-1]


LEFT_RUNNING = """
import httpx
from mlxlab.web.background import BackgroundServer
from tests.web.test_background import app
server = BackgroundServer(app).start()
stream = httpx.Client().send(httpx.Request("GET", server.url + "/wait"), stream=True)
print(next(stream.iter_raw()))
"""


def test_the_interpreter_ends_with_a_server_running() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", LEFT_RUNNING],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'a'\n", "")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_and_nothing_else(kind: signal.Signals) -> None:
    before = signal.getsignal(kind)
    wait_for_signal(lambda: signal.raise_signal(kind))
    assert signal.getsignal(kind) == before


def test_handlers_return_when_ready_fails() -> None:
    before = signal.getsignal(signal.SIGINT)

    def fail() -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        wait_for_signal(fail)
    assert signal.getsignal(signal.SIGINT) == before
