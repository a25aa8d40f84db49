"""A client that leaves: work stops soon, and what it computed is kept."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pandas as pd
import pytest

from mlxlab.server.server import Server
from tests.support.endpoint import (
    PATIENCE_S,
    Client,
    ask,
    raw_request,
    served,
    until,
    words,
)
from tests.support.models import save_model
from tests.support.paced import Paced

#: Seconds within which work has to stop.
SOON_S = 2.0
#: Every strategy, some streamed, some not.
CASES = (
    ("paged", True),
    ("paged", False),
    ("prefix", True),
    ("static-prefix", False),
    ("block-hash:block=64,minimum=64", True),
    ("mlx-lm", False),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Its answers never end by themselves.
    model = save_model(tmp_path_factory.mktemp("model"))
    with served(str(model), chunk=16, batch=1) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Paced:
    return Paced(monkeypatch)


def unfinished(server: Server) -> int:
    return server._service.scheduler.unfinished


def leave(server: Server, connection: socket.socket) -> dict[str, Any]:
    """Close the connection; what the server remembers of the request."""
    before, left = len(server.requests), unfinished(server) - 1
    connection.close()
    assert until(lambda: unfinished(server) == left) < SOON_S
    until(lambda: len(server.requests) == before + 1)
    row = server.requests.iloc[-1]
    assert row.outcome == "cancelled"
    return {str(key): value for key, value in row.items()}


def reused(message: dict[str, Any]) -> int:
    return int(message["usage"]["cache_read_input_tokens"])


@pytest.mark.parametrize(("strategy", "stream"), CASES)
def test_leaving_in_prefill_stops_it_and_keeps_what_was_computed(
    server: Server, client: Client, watched: Paced, strategy: str, stream: bool
) -> None:
    server.configure(strategy=strategy)
    body = ask(f"{stream} {strategy} {words(300)}", max_tokens=2, stream=stream)
    connection = raw_request(server, body)
    assert watched.in_prefill.wait(PATIENCE_S)
    row = leave(server, connection)
    assert pd.isna(row["ttft_s"])
    assert not watched.in_decode.is_set()
    watched.pace_s = 0.0
    assert 64 <= reused(client.ask(body)) < row["prompt_tokens"] - 16


@pytest.mark.parametrize(("strategy", "stream"), CASES[:3])
def test_leaving_in_decode_stops_it_and_keeps_the_prompt(
    server: Server, client: Client, watched: Paced, strategy: str, stream: bool
) -> None:
    server.configure(strategy=strategy)
    body = ask(f"Go on. {stream} {strategy} {words(30)}", stream=stream)
    connection = raw_request(server, body | {"max_tokens": 20_000})
    assert watched.in_decode.wait(PATIENCE_S)
    row = leave(server, connection)
    again = client.ask(body, max_tokens=1)
    assert reused(again) >= row["prompt_tokens"] - 64


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_queued_never_starts(
    server: Server, client: Client, watched: Paced, stream: bool
) -> None:
    before = len(server.requests)
    with ExitStack() as connections:

        def begin(text: str, **changes: Any) -> socket.socket:
            ahead = unfinished(server)
            connection = raw_request(server, ask(text, **changes))
            until(lambda: unfinished(server) == ahead + 1)
            return connections.enter_context(connection)

        running = begin("Go on.", max_tokens=20_000, stream=True)
        assert watched.in_decode.wait(PATIENCE_S)
        begin("I wait.", stream=True)
        leaving = begin("I cannot wait.", stream=stream)
        assert server.status().waiting == 2
        leave(server, leaving)
        assert server.status().waiting == 1
        leave(server, running)
        until(lambda: len(server.requests) == before + 3)
    assert watched.started == 2
    assert server.requests.outcome.iloc[-1] in {"max_tokens", "end_turn"}


def test_the_next_request_is_answered_after_every_kind_of_leaving(
    server: Server, client: Client
) -> None:
    """Without watching: whatever the moment, one request is one row."""
    before = len(server.requests)
    for n, delay_s in enumerate((0.0, 0.001, 0.005, 0.02, 0.05, 0.1)):
        for stream in (True, False):
            body = ask(f"{n} {stream} {words(100)}", max_tokens=500, stream=stream)
            connection = raw_request(server, body)
            time.sleep(delay_s)
            connection.close()
    assert client.ask(ask("Still there?", max_tokens=3))["usage"]["output_tokens"]
    assert until(lambda: unfinished(server) == 0) < SOON_S
    rows = server.requests.iloc[before:]
    assert set(rows.outcome) <= {"cancelled", "max_tokens", "end_turn"}
    assert len(rows) <= 13


def test_a_stream_that_nobody_reads_does_not_hold_up_others(
    server: Server, client: Client
) -> None:
    silent = raw_request(server, ask("Go on.", max_tokens=200, stream=True))
    with silent:
        assert client.ask(ask("And I?"))["stop_reason"]
    assert until(lambda: unfinished(server) == 0) < SOON_S


def heard(connection: socket.socket, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


def test_a_prefill_of_many_small_chunks_is_heard_of(
    server: Server, watched: Paced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxlab.server.app._PING_S", 0.05)
    with raw_request(server, ask(words(200), max_tokens=1, stream=True)) as connection:
        data = heard(connection, b"message_stop")
    before = data.partition(b"content_block_start")[0]
    assert before.count(b"event: ping") >= 5


def test_an_answer_has_an_end_however_small_its_steps(watched: Paced) -> None:
    with served(chunk=16, answer_s=0.3) as server, Client(server.url) as client:
        status, message = client.refusal(ask(words(300)))
        assert (status, "takes too long" in message) == (504, True)
        assert not watched.in_decode.is_set()
        assert until(lambda: unfinished(server) == 0) < SOON_S
        watched.pace_s = 0.0
        assert client.ask(ask("Short.", max_tokens=1))


@pytest.mark.parametrize("phase", ["prefill", "decode", "queue"])
def test_a_stop_ends_open_answers_soon(watched: Paced, phase: str) -> None:
    with served(chunk=16, batch=1) as server, ExitStack() as connections:
        bodies = [ask(words(300) if phase == "prefill" else "Go on.", max_tokens=20000)]
        bodies += [ask("I wait.")] * (phase == "queue")
        for body in bodies:
            connections.enter_context(raw_request(server, body | {"stream": True}))
        reached = watched.in_prefill if phase == "prefill" else watched.in_decode
        assert reached.wait(PATIENCE_S)
        until(lambda: unfinished(server) == len(bodies))
        begun = time.monotonic()
        server.stop()
        # A second of grace, then at most the item in work.
        assert time.monotonic() - begun < 1 + SOON_S
        assert not server.is_running
    assert watched.started == 1
