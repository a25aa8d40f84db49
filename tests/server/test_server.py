"""The handle: live changes, several models, recording, starting and stopping."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxlab import compare
from mlxlab.client.discovery import running
from mlxlab.engine import Loader
from mlxlab.errors import MlxlabError, ModelError, ServerError, TraceError
from mlxlab.models import tiny
from mlxlab.server.server import Options, Server, serve
from mlxlab.traces import load_trace, read_trace
from mlxlab.traces.recording.latest import find_latest
from tests.support import wire
from tests.support.endpoint import (
    TOKEN,
    Client,
    ask,
    copy_tiny,
    raw_request,
    served,
    until,
    words,
)

WEIGHTS = (tiny.PATH / "model.safetensors").stat().st_size


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, for servers that are started by hand."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} - {"MainThread"}


def reused(message: dict[str, Any]) -> int:
    return int(message["usage"]["cache_read_input_tokens"])


def loaded(server: Server) -> list[str]:
    """Models in memory, the least recently used first."""
    worker, pool = server._worker, server._service.pool
    return worker.call(lambda: [Path(name).name for name in pool._loaded])


# Live changes


def test_another_strategy_answers_the_next_request(
    server: Server, client: Client
) -> None:
    body = ask(words(100), max_tokens=1)
    for strategy in ("prefix", "paged:block=16", "none", "mlx-lm"):
        server.configure(strategy=strategy)
        assert repr(server) == f"Server(tiny, {strategy})"
        assert reused(client.ask(body)) == 0
        assert (reused(client.ask(body)) > 0) == (strategy != "none")
        assert server.requests.strategy.iloc[-1] == strategy
    assert (
        client.get("/v1/models")
        .json()["data"][0]["display_name"]
        .endswith("(tiny, mlx-lm)")
    )


def test_rules_change_what_is_rendered(server: Server, client: Client) -> None:
    body = wire.first_body()
    counts = []
    for rules in ("all", "none", "-drop-attribution", "all"):
        server.configure(rules=rules)
        counted = client.post("/v1/messages/count_tokens", json=body)
        counts.append(counted.json()["input_tokens"])
    assert counts[0] == counts[3]
    assert counts[2] > counts[0]
    assert len(set(counts)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "nope"},
        {"strategy": "paged:block=0"},
        {"strategy": "prefix", "model": "nowhere"},
        {"rules": "nope"},
        {"model": "/nowhere/at/all"},
    ],
    ids=str,
)
def test_a_bad_name_changes_nothing(
    server: Server, client: Client, change: dict[str, str]
) -> None:
    server.configure(strategy="paged", rules="all")
    body = ask(words(60), max_tokens=1)
    client.ask(body)
    before = (server.aliases, server.endpoint.aliases, repr(server))
    with pytest.raises(MlxlabError):
        server.configure(**change)
    assert (server.aliases, server.endpoint.aliases, repr(server)) == before
    assert reused(client.ask(body)) > 0


def test_a_broken_model_changes_nothing(
    server: Server, client: Client, tmp_path: Path
) -> None:
    broken = Path(copy_tiny(tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        server.configure(model=str(broken))
    assert server.aliases.default.model == "tiny"
    assert client.ask(ask())["stop_reason"]


def test_a_recording_that_stops_is_in_the_status(
    tmp_path: Path, server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.record(tmp_path / "first.jsonl")

    def write(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("mlxlab.traces.writer._write", write)
        assert client.ask(ask())["stop_reason"]
    assert "first.jsonl: No space left on device; 0 requests" in repr(server.status())
    assert "stopped: " in server._repr_html_()
    server.record(tmp_path / "second.jsonl")
    assert "stopped" not in repr(server.status())
    assert client.ask(ask())["stop_reason"]
    server.record(None)
    assert len(read_trace(tmp_path / "second.jsonl").inference) == 1


def test_a_recording_goes_into_a_pipe_until_its_reader_leaves(
    tmp_path: Path, server: Server, client: Client
) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    before = latest_recording()
    server.record(pipe)
    assert latest_recording() == before
    assert client.ask(ask())["stop_reason"]
    kinds = [json.loads(line)["kind"] for line in os.read(reader, 2**20).splitlines()]
    assert kinds == ["trace", "body", "request", "response"]
    os.close(reader)
    assert client.ask(ask())["stop_reason"]
    assert "pipe: Broken pipe; 1 requests are in it" in repr(server.status())
    server.record(None)


def latest_recording() -> Path | None:
    try:
        return find_latest()
    except TraceError:
        return None


def test_a_change_leaves_a_running_answer_alone(server: Server, client: Client) -> None:
    server.configure(strategy="paged")
    with raw_request(server, ask("Go on.", max_tokens=100, stream=True)) as connection:
        data = connection.recv(65536)
        server.configure(strategy="prefix")
        while b"message_stop" not in data:
            piece = connection.recv(65536)
            assert piece
            data += piece
    assert b"event: error" not in data
    assert server.requests.strategy.iloc[-1] == "paged"
    assert client.ask(ask())["stop_reason"]
    assert server.requests.strategy.iloc[-1] == "prefix"


# Several models


def test_the_least_recently_used_model_makes_room(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    aliases = {name: {"model": copy_tiny(tmp_path / name)} for name in names}
    file = {"aliases": {"default": {"strategy": "prefix"}, **aliases}}
    # Room for two and some keys and values.
    memory = int(3.3 * WEIGHTS)
    with served(aliases=file, memory=memory) as server, Client(server.url) as client:

        def answered_by(*models: str) -> list[str]:
            for model in models:
                assert client.ask(ask(model=model, max_tokens=2))["stop_reason"]
            return loaded(server)

        assert answered_by() == ["tiny"]
        assert answered_by("a") == ["tiny", "a"]
        assert answered_by("b") == ["a", "b"]
        assert answered_by("a", "c") == ["a", "c"]
        assert answered_by("default", "a", "default") == ["a", "tiny"]
        assert answered_by("c") == ["tiny", "c"]
        pool = server._service.pool
        assert server._worker.call(lambda: pool.nbytes) <= memory
        assert set(server.requests.outcome) <= {"max_tokens", "end_turn"}
        # A model that was unloaded has lost its cache, one that stayed has not.
        assert reused(client.ask(ask(model="c", max_tokens=2))) > 0
        assert reused(client.ask(ask(model="b", max_tokens=2))) == 0


def test_another_default_model_lets_the_old_one_go(tmp_path: Path) -> None:
    other = copy_tiny(tmp_path / "other", max_position_embeddings=5000)
    with served() as server, Client(server.url) as client:
        assert server.endpoint.window == 131072
        server.configure(model=other)
        assert client.ask(ask())["stop_reason"]
        assert loaded(server) == ["other"]
        assert server.endpoint.window == 5000
        assert [e.window for e in running()] == [5000]
        server.configure(model="tiny")
        assert client.ask(ask())["stop_reason"]
        assert loaded(server) == ["tiny"]


def test_a_model_over_the_budget_is_refused(home: Path) -> None:
    before = own_threads()
    with pytest.raises(ModelError, match="memory budget is 1 MiB; raise --memory"):
        serve(options=Options(memory=2**20))
    assert own_threads() == before


def test_long_prompts_push_out_other_caches_first(tmp_path: Path) -> None:
    """The budget is for keys and values too."""
    other = copy_tiny(tmp_path / "other")
    file = {"aliases": {"default": {"strategy": "prefix"}, "other": {"model": other}}}
    memory = int(3.2 * WEIGHTS)
    with served(aliases=file, memory=memory) as server, Client(server.url) as client:
        client.ask(ask(model="other"))
        assert loaded(server) == ["tiny", "other"]
        client.ask(ask(words(600), max_tokens=1))
        client.ask(ask("More.", max_tokens=1))
        assert loaded(server) == ["tiny"]


# Recording


def test_recording_goes_on_and_off_while_it_runs(
    server: Server, client: Client, tmp_path: Path
) -> None:
    server.configure(strategy="paged:block=16", rules="all")
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    client.ask(ask("Before."))
    server.record(paths[0])
    assert str(server.trace) == str(paths[0])
    assert str(paths[0]) in server._repr_html_()
    client.ask(ask("One."))
    client.post("/v1/messages/count_tokens", json=ask("One."))
    server.record(paths[1])
    client.ask(ask("Two."), stream=True)
    server.record(None)
    assert server.trace is None
    client.ask(ask("After."))
    traces = [load_trace(path) for path in paths]
    assert [len(trace.inference) for trace in traces] == [1, 1]
    bodies = (ask("One."), ask("Two.", stream=True))
    for trace, body in zip(traces, bodies, strict=True):
        (exchange,) = trace.inference
        assert exchange.body == body
        # Recorded whole, though recording ended as soon as the client had it.
        assert exchange.response is not None
        assert exchange.response.generated is not None
    with pytest.raises(TraceError, match=r"one\.jsonl"):
        server.record(paths[0])
    assert server.trace is None
    assert client.ask(ask())["stop_reason"]


def test_a_recording_that_ends_in_the_middle_of_an_answer_harms_nobody(
    server: Server, client: Client, tmp_path: Path
) -> None:
    server.record(tmp_path / "cut.jsonl")
    body = ask("Go on.", max_tokens=60, stream=True)
    with raw_request(server, body) as connection:
        data = connection.recv(65536)
        server.record(None)
        while b"message_stop" not in data:
            data += connection.recv(65536)
    assert b"event: error" not in data
    (only,) = load_trace(tmp_path / "cut.jsonl").exchanges
    assert only.response is None


@pytest.mark.parametrize(
    "strategy", ["paged:block=16", "prefix", "static-prefix", "mlx-lm"]
)
def test_a_recorded_session_replays_as_it_was_answered(
    tmp_path: Path, strategy: str
) -> None:
    path = tmp_path / "live.jsonl"
    with served(strategy=strategy) as server, Client(server.url) as client:
        server.record(path)
        for ask_for in ("Why does the sum fail?", "Add a test."):
            body = wire.first_body(ask_for)
            for n in range(3):
                answer = client.ask(body, max_tokens=20, stream=n != 1)
                body = wire.next_body(body, answer, f"Result {n}")
        # A client that left is in the trace too, and has changed the cache.
        raw_request(server, ask(words(50), max_tokens=2)).close()
        until(lambda: server._service.scheduler.unfinished == 0)
        live = server.requests.reused_tokens.tolist()[:6]
        server.record(None)
    compared = compare(path, strategies=strategy, simulate=True, progress=False)
    replayed = compared.requests.reused_tokens.tolist()[:6]
    assert live == replayed
    assert sum(live) > 0


# Starting and stopping


def test_a_start_and_a_stop_may_come_twice(home: Path) -> None:
    before = own_threads()
    server = serve(options=Options(token=TOKEN))
    url = server.url
    assert server.start() is server
    assert server.url == url
    assert [endpoint.url for endpoint in running()] == [url]
    assert httpx.get(f"{url}/health").status_code == 200
    for _ in range(2):
        server.stop()
        assert not server.is_running
        assert running() == []
        assert own_threads() == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_what_was_stopped_stays_so(home: Path, tmp_path: Path) -> None:
    server = serve()
    server.stop()
    for call in (
        server.start,
        lambda: server.configure(strategy="prefix"),
        lambda: server.record(tmp_path / "late.jsonl"),
        lambda: server.endpoint,
        lambda: server.environment,
    ):
        with pytest.raises(ServerError):
            call()
    assert not server.is_running
    assert not (tmp_path / "late.jsonl").exists()
    assert repr(server) == "Server(tiny, paged, stopped)"
    assert "stopped" in server._repr_html_()
    assert server.token not in server._repr_html_()
    assert len(server.requests) == 0


def test_an_occupied_port_leaves_nothing_behind(
    server: Server, home: Path, tmp_path: Path
) -> None:
    port = int(server.url.rpartition(":")[2])
    before = own_threads()
    with pytest.raises(ServerError, match=f"{port}: .*; give a free port"):
        serve(record=tmp_path / "trace.jsonl", options=Options(port=port))
    assert own_threads() == before
    assert not (tmp_path / "trace.jsonl").exists()
    assert not list(home.rglob("*.json"))
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"strategy": "nope"}, {}),
        ({"model": "nowhere"}, {}),
        ({"rules": "nope"}, {}),
        ({"aliases": "/nowhere/aliases.json"}, {}),
        ({"record": "/nowhere/at/all.jsonl"}, {}),
        ({}, {"script": "/nowhere/script.json"}),
        ({}, {"token": "kürzer"}),
        ({}, {"chunk": 0}),
        ({}, {"queue": -1}),
        ({}, {"memory": 0}),
        ({}, {"port": 70_000}),
        ({}, {"host": "192.0.2.1"}),
    ],
    ids=str,
)
def test_a_server_that_cannot_start_leaves_nothing_behind(
    home: Path, given: dict[str, Any], options: dict[str, Any]
) -> None:
    before = own_threads()
    with pytest.raises(MlxlabError) as caught:
        serve(**given, options=Options(**options))
    assert "\n" not in str(caught.value)
    assert own_threads() == before
    assert not list(home.rglob("*.json"))


def test_two_servers_live_side_by_side(server: Server) -> None:
    with served(strategy="prefix", token="another-token") as other:
        with Client(other.url, "another-token") as client:
            assert client.ask(ask(words(40)))["stop_reason"]
            assert reused(client.ask(ask(words(40)))) > 0
        with Client(other.url) as client:
            assert client.get("/v1/models").status_code == 401
        assert len(other.requests) == 2
    assert server.is_running


def test_a_folder_that_cannot_be_written_is_no_reason_not_to_serve(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.mkdir()
    (home / ".cache").write_text("in the way")
    with serve(options=Options(token=TOKEN)) as server, Client(server.url) as client:
        assert client.ask(ask())["stop_reason"]
    assert "will not find this endpoint" in caplog.text


# What is shown


def test_the_handle_shows_what_a_user_needs(server: Server, client: Client) -> None:
    client.ask(ask())
    shown = server._repr_html_()
    for text in (server.url, "server.token", "tiny", server.aliases.default.strategy):
        assert text in shown
    assert TOKEN not in shown
    assert server.environment["ANTHROPIC_BASE_URL"] == server.url
    assert TOKEN in server.environment.values()
    status = server.status()
    assert repr(status).startswith(f"{server!r}: {len(server.requests)} requests, ")
    assert "<table" in status._repr_html_()


def test_what_is_shown_is_escaped(tmp_path: Path) -> None:
    name = copy_tiny(tmp_path / "<script>alert(1)<")
    with served(name) as server:
        for shown in (server._repr_html_(), server.status()._repr_html_()):
            assert "<script>" not in shown
            assert "&lt;script&gt;" in shown


def test_the_bundled_model_weighs_what_its_file_does(server: Server) -> None:
    assert Loader().weigh(server._service.preparation.folder) == WEIGHTS
