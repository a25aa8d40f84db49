"""The command `serve` on two processes, over HTTP."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.endpoint import TOKEN, Client, served
from tests.support.pair import Pair, free_ports, needs_ring, save_two_heads

pytestmark = [pytest.mark.slow, needs_ring]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_two_heads(tmp_path_factory.mktemp("models") / "two")


def serving(model: str, scratch: Path) -> tuple[Pair, str]:
    """Start two processes of a server; return them and its address."""
    (port,) = free_ports(1)
    command = ["mlxlab", "serve", "--model", model, "--port", str(port)]
    return Pair(command, scratch, MLXLAB_TOKEN=TOKEN), f"http://127.0.0.1:{port}"


def body(*texts: str, n: int = 20) -> dict[str, Any]:
    """Return a request of user texts and answers in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
    return {"model": "default", "max_tokens": n, "messages": messages}


def talk(client: Client) -> list[tuple[str, dict[str, int]]]:
    """Ask two at once, leave a stream, and ask the first again with a second turn."""
    first, second = body("Tell me of rings. " * 30), body("Count the leaves. " * 9)
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(client.ask, (first, second)))
    long = body("Never stop.", n=4000) | {"stream": True}
    with client.stream("POST", "/v1/messages", json=long) as stream:
        next(stream.iter_lines())
    said = answers[0]["content"][0]["text"]
    turn = body(first["messages"][0]["content"], said, "And then?")
    answers.append(client.ask(turn))
    return [(a["content"][0]["text"], a["usage"]) for a in answers]


def test_clients_see_no_difference(folder: Path, tmp_path: Path) -> None:
    with served(str(folder)) as alone, Client(alone.url) as client:
        expected = talk(client)
    pair, url = serving(str(folder), tmp_path)
    with pair:
        pair.wait_for("Stop with Ctrl-C")
        with Client(url) as client:
            assert talk(client) == expected
        pair.processes[0].send_signal(signal.SIGTERM)
        assert pair.result(0) == (0, "", [])
        assert pair.result(1) == (0, "", [])
    assert expected[-1][1]["cache_read_input_tokens"] > 0


def test_no_half_answer_is_complete(folder: Path, tmp_path: Path) -> None:
    pair, url = serving(str(folder), tmp_path)
    long = body("Never stop.", n=100_000) | {"stream": True}
    events: list[str] = []
    with pair, Client(url) as client, suppress(httpx.TransportError):
        pair.wait_for("Stop with Ctrl-C")
        with client.stream("POST", "/v1/messages", json=long) as stream:
            for line in stream.iter_lines():
                events.append(line)
                if len(events) == 40:
                    pair.processes[1].kill()
    assert len(events) >= 40
    assert not [line for line in events if "message_stop" in line]


def test_a_lost_rank_ends_the_server(folder: Path, tmp_path: Path) -> None:
    pair, _ = serving(str(folder), tmp_path)
    with pair:
        pair.wait_for("Stop with Ctrl-C")
        pair.processes[1].kill()
        news = "rank 1 was lost: its connection was closed; the server has ended"
        assert pair.result(0) == (1, "", [f"mlxlab: {news}"])


def test_a_model_that_cannot_be_divided_is_one_line(tmp_path: Path) -> None:
    refusal = "mlxlab: model tiny: cannot be divided among 2 processes: n_heads is 1"
    with serving("tiny", tmp_path)[0] as pair:
        assert pair.result(0) == (2, "", [refusal])
        assert pair.result(1) == (2, "", [])
