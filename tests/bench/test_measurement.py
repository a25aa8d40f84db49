from __future__ import annotations

import socket
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from bench import processes
from bench.measurement import Kind, kinds_of, measure
from bench.processes import running
from mlxlab.errors import ServerError
from mlxlab.replay.endpoints.answers import ask
from mlxlab.replay.endpoints.dialect import Usage
from mlxlab.traces import Exchange, Trace, load_trace
from tests.support.bench_samples import stand_in

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}] * 2}


def trace(*sessions: str) -> Trace:
    exchanges = (
        Exchange(i, 0.0, "POST", "/v1/messages", {"x-claude-code-session-id": s}, BODY)
        for i, s in enumerate(sessions)
    )
    return Trace("made", tuple(exchanges))


def is_open(client: httpx.Client) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", client.base_url.port or 0)) == 0


def test_kinds_of_sessions() -> None:
    kinds = [kind for _, kind in kinds_of(load_trace("sessions"))]
    begun = [i for i, kind in enumerate(kinds) if kind is Kind.NEW_SESSION]
    assert kinds[0] is Kind.TURN_1
    assert begun == [4, 8]
    assert Counter(kinds)[Kind.WARM] == 8


def test_kinds_of_sub_agents() -> None:
    counts = Counter(kind for _, kind in kinds_of(load_trace("subagents")))
    assert counts == {Kind.SUB_AGENTS: 26, Kind.MAIN_LOOP: 12}


def test_the_first_token_is_timed_and_usage_read() -> None:
    server = stand_in()
    with running(server, None) as client:
        answer = ask(server, client, BODY)
    assert 0.05 <= answer.ttft_s < 5
    assert answer.usage == Usage(prompt=2, reused=2)


def test_each_piece_of_an_answer_is_timed() -> None:
    server = stand_in()
    with running(server, None) as client:
        answer = ask(server, client, BODY, max_tokens=5)
    assert answer.generated == len(answer.tokens_s) == 5
    assert len(answer.gaps) == 4
    assert list(answer.tokens_s) == sorted(answer.tokens_s)


def test_an_answer_can_be_broken_off() -> None:
    server = stand_in()
    with running(server, None) as client:
        answer = ask(server, client, BODY, max_tokens=10**6, stop=lambda n: n >= 3)
    assert answer.generated is None
    assert 1 <= len(answer.tokens_s) < 10**6


def test_a_server_can_have_a_home_that_stays_with_files(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "record").write_text("known")
    server = replace(stand_in(), files={".cache/a/b": tmp_path / "record"})
    with running(server, None, home=home) as client:
        answer = client.post("/v1/messages", json=BODY).text
    assert f"'{home}'" in answer
    assert (home / ".cache/a/b").read_text() == "known"
    (home / ".cache/a/b").write_text("what the server has made of it")
    with running(server, None, home=home):
        assert (home / ".cache/a/b").read_text() == "what the server has made of it"


def test_a_server_has_gone_after_the_block() -> None:
    with suppress(RuntimeError), running(stand_in(), None) as client:
        assert is_open(client)
        raise RuntimeError
    assert not is_open(client)


def test_a_server_that_ignores_the_signal_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_END_S", 0.3)
    with running(stand_in("stubborn"), None) as client:
        assert is_open(client)
    assert not is_open(client)


def test_all_servers_get_the_library_and_an_empty_home() -> None:
    # The loader passes over a library that it does not find.
    library = Path("/nowhere/libfast.so")
    with running(stand_in(), library) as client:
        answer = client.post("/v1/messages", json=BODY).text
    assert str(library) in answer
    assert f"'{Path.home()}'" not in answer


def test_rounds_alternate() -> None:
    servers = [stand_in(name="a"), stand_in(name="b")]
    samples, left_out = measure(servers, [trace("s", "s")], rounds=3, library=None)
    order = dict.fromkeys((s.round, s.server) for s in samples)
    assert list(order) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert [s.kind for s in samples[:2]] == [Kind.TURN_1, Kind.WARM]
    assert not left_out


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "crash ended with code 1: cannot find the model"),
        ("refuse", "refuse refused a request: 422 no such role"),
        ("silent", "silent gave no token"),
        ("fail", "fail gave no token: {'message': 'out of memory'}"),
    ],
)
def test_a_server_that_fails_is_left_out(fault: str, reason: str) -> None:
    samples, left_out = measure(
        [stand_in(fault), stand_in()], [trace("s")], rounds=1, library=None
    )
    assert {s.server for s in samples} == {"good"}
    assert left_out[fault].startswith(reason)


def test_a_server_that_is_never_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_READY_S", 0.0)
    with (
        pytest.raises(ServerError, match="good was not ready after 0 s: silent"),
        running(stand_in(), None),
    ):
        pass
