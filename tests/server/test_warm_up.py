"""What sessions begin with is computed while nothing is asked, and stays."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mlxlab import compare
from mlxlab.errors import TraceError
from mlxlab.server.server import Options, Server, serve
from mlxlab.server.warm_up import find_beginnings
from mlxlab.traces import Exchange, Trace
from mlxlab.traces.open import open_one
from tests.support.architectures import save_architecture
from tests.support.endpoint import TOKEN, Client, ask, served, until, words
from tests.support.hybrids import HYBRIDS

#: Two kinds of sessions, and a session like the first of them.
SYSTEMS = (words(200), words(150, 5000), words(200))


def recorded(path: Path, model: str = "tiny") -> Trace:
    """Record a session of each kind."""
    with served(model) as server, Client(server.url) as client:
        server.record(path)
        for i, system in enumerate(SYSTEMS):
            headers = {"x-claude-code-session-id": f"session{i}"}
            body = ask(f"Task {i}.", system=system)
            assert client.post("/v1/messages", json=body, headers=headers).is_success
    return open_one(path)


def warm(server: Server) -> bool:
    return "2 of 2 beginnings warm" in repr(server.status())


def test_the_most_frequent_beginning_comes_first(tmp_path: Path) -> None:
    first, second = find_beginnings(recorded(tmp_path / "trace.jsonl"))
    assert first["system"] == SYSTEMS[0]
    assert first["messages"][0]["content"] == "Task 2."  # of the latest session
    assert second["system"] == SYSTEMS[1]
    assert first["max_tokens"] == second["max_tokens"] == 0


def test_agents_begin_otherwise_than_their_session() -> None:
    trace = open_one("subagents")
    found = find_beginnings(trace)
    assert len(found) == len({str(body["tools"]) for body in found}) > 1
    assert not any({"stream", "metadata"} & body.keys() for body in found)


def test_a_trace_without_beginnings_is_refused(tmp_path: Path) -> None:
    with served() as server, Client(server.url) as client:
        server.record(tmp_path / "trace.jsonl")
        client.ask(ask())
        with pytest.raises(TraceError, match="no request with system text or tools"):
            server.warm_up(tmp_path / "trace.jsonl")
        assert "warm" not in repr(server.status())


@pytest.mark.parametrize(("model", "capacity"), [("tiny", 6), ("qwen3_5", 1)])
def test_a_new_session_finds_its_beginning(
    model: str, capacity: int, tmp_path: Path
) -> None:
    """Also after much other traffic; the recording replays to the same counts."""
    if model in HYBRIDS:
        save_architecture(tmp_path / model, HYBRIDS[model])
        model = str(tmp_path / model)
    trace = recorded(tmp_path / "trace.jsonl", model)
    path = tmp_path / "warm.jsonl"
    # Room for the beginnings and about two other requests.
    strategy = f"paged:capacity={capacity}MiB"
    with served(model, strategy) as server, Client(server.url) as client:
        server.record(path)
        server.warm_up(trace)
        until(lambda: warm(server))
        for i in range(8):
            client.ask(ask(words(300, 10_000 * (i + 1))))
        for system in SYSTEMS[:2]:
            client.ask(ask("A new task.", system=system))
        status, metrics = server.status(), client.get("/metrics").text
    requests = status.requests
    assert (requests.reused_tokens.tail(2) > 500).all()
    pinned = re.search(r"([\d,]+) tokens pinned", repr(status))
    assert pinned
    assert int(pinned[1].replace(",", "")) == status.pinned > 1000
    assert f"mlxlab_pinned_tokens {float(status.pinned)}" in metrics
    own = open_one(path)
    found = compare(own, model=model, strategies=strategy, simulate=True).requests
    assert found.reused_tokens.tolist() == requests.reused_tokens.tolist()
    assert found.session.tolist()[:2] == ["warm-up"] * 2
    # Pins alone keep them: the same traffic without is lost.
    unpinned = replace(own, exchanges=tuple(map(_asked, own.exchanges)))
    lost = compare(unpinned, model=model, strategies=strategy, simulate=True).requests
    assert (lost.reused_tokens.tail(2) < 500).all()


def _asked(exchange: Exchange) -> Exchange:
    """The same request, as one that asks for an answer."""
    assert exchange.body is not None
    return replace(exchange, body=exchange.body | {"max_tokens": 1})


def test_requests_come_before_the_warm_up() -> None:
    beginnings = len(find_beginnings(open_one("subagents")))
    done = f"{beginnings} of {beginnings} beginnings warm"
    with served(chunk=64) as server, Client(server.url) as client:
        server.warm_up("subagents")  # some 10,000 tokens, in small chunks
        client.ask(ask(words(50, 20_000)))
        assert done not in repr(server.status())
        until(lambda: done in repr(server.status()))


def test_the_latest_recording_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = Options(token=TOKEN)
    with pytest.raises(TraceError, match="none yet; record one"):
        serve("tiny", warm="latest", options=options)
    path = tmp_path / "trace.jsonl"
    with (
        serve("tiny", record=path, options=options) as server,
        Client(server.url) as client,
    ):
        client.ask(ask(system=SYSTEMS[0]))
    again = tmp_path / "again.jsonl"
    with serve("tiny", record=again, warm="latest", options=options) as server:
        until(lambda: "1 of 1 beginnings warm" in repr(server.status()))
    assert len(open_one(again).inference) == 1
    again.unlink()
    with pytest.raises(TraceError, match=r"again\.jsonl is gone; give another"):
        serve("tiny", warm="latest", options=options)


def test_a_trace_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    with served() as server, Client(server.url) as client:
        with pytest.raises(TraceError, match="no trace 'nowhere'"):
            server.warm_up("nowhere")
        assert client.ask(ask())["stop_reason"]
