"""Requests that ran at once reuse in a replay what they reused on the server."""

from __future__ import annotations

import random
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlxlab import compare, misses
from mlxlab.prompt import Prompt
from mlxlab.replay.commits import Commits, order_as_planned
from mlxlab.replay.requests import RenderedRequest
from mlxlab.server.server import Server
from mlxlab.strategies.use import Use
from mlxlab.traces import Trace, read_trace
from mlxlab.traces.schema import Order
from tests.support.architectures import save_architecture
from tests.support.endpoint import Client, ask, raw_request, served, until, words
from tests.support.hybrids import HYBRIDS


def traffic(server: Server, seed: int, clients: int = 4, turns: int = 4) -> None:
    """Let clients with common beginnings talk at once; some leave early."""
    threads = [
        threading.Thread(target=_talk, args=(server, random.Random(seed + n), turns))
        for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: server._service.scheduler.unfinished == 0)


def _talk(server: Server, rng: random.Random, turns: int) -> None:
    system = words(60 * rng.randint(1, 3))
    messages: list[dict[str, Any]] = []
    session = {"user_id": f'{{"session_id": "{rng.getrandbits(32):08x}"}}'}
    with Client(server.url) as client:
        for _ in range(turns):
            text = words(rng.randint(1, 40), 1000 * rng.randint(1, 3))
            messages.append({"role": "user", "content": text})
            body = ask(system=system, max_tokens=rng.randint(1, 30), temperature=0)
            body |= {"messages": messages, "metadata": session}
            if rng.random() < 0.2:
                with raw_request(server, body | {"max_tokens": 500}):
                    time.sleep(rng.random() / 3)
                messages.pop()
                continue
            answer = client.ask(body, stream=rng.random() < 0.5)
            messages.append({"role": "assistant", "content": answer["content"]})
            if not answer["content"]:
                del messages[-2:]


@pytest.fixture(scope="module", params=["tiny", "qwen3_5", "gpt_oss"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str:
    if request.param == "tiny":
        return "tiny"
    folder = tmp_path_factory.mktemp("model") / request.param
    save_architecture(folder, HYBRIDS[request.param])
    return str(folder)


@pytest.mark.parametrize(
    "strategy",
    ["paged", "paged:capacity=600KiB,evict=residual", "prefix", "mlx-lm:max_size=3"],
)
def test_a_replay_reuses_what_the_server_reused(
    model: str, strategy: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    with served(model, strategy, chunk=64) as server:
        server.record(path)
        traffic(server, seed=len(strategy))
    trace = read_trace(path)
    found = compare(
        trace, model=model, strategies=strategy, simulate=True, progress=False
    ).requests.set_index("request")
    reported = {
        exchange.id: exchange.response.message["usage"]["cache_read_input_tokens"]
        for exchange in trace.inference
        if exchange.response and exchange.response.message
    }
    assert len(reported) >= 8
    assert found.reused_tokens[list(reported)].to_dict() == reported
    assert overlap(trace)
    explained = misses(trace, model=model, progress=False).requests
    reused = explained.set_index("request").reused_tokens
    assert reused.to_dict() == found.reused_tokens.to_dict()


def overlap(trace: Trace) -> bool:
    """Whether a request was planned before an earlier one was stored."""
    answers = [exchange.response for exchange in trace.inference]
    orders = [answer.order for answer in answers if answer and answer.order]
    orders.sort(key=lambda order: order.planned)
    return any(b.planned < a.stored[-1][0] for a, b in pairwise(orders) if a.stored)


def test_a_live_replay_follows_the_order(model: str, tmp_path: Path) -> None:
    strategy, path = "paged", tmp_path / "trace.jsonl"
    with served(model, strategy, chunk=64) as server:
        server.record(path)
        traffic(server, seed=7)
    live, simulated = (
        compare(
            path, model=model, strategies=strategy, simulate=simulate, progress=False
        )
        for simulate in (False, True)
    )
    columns = ["request", "reused_tokens", "stored_bytes", "evicted"]
    pd.testing.assert_frame_equal(live.requests[columns], simulated.requests[columns])


def request(id: int, order: Order | None) -> RenderedRequest:
    prompt = Prompt.of(range(10))
    none = np.empty(0, np.int32)
    return RenderedRequest("session", id, prompt, none, trace="trace", order=order)


def _pair(id: int, length: int, use: Use) -> tuple[int, int, bool]:
    return id, length, use.running


def test_commits_come_when_they_came() -> None:
    requests = [
        request(0, Order(planned=3, stored=((5, 9),))),
        request(1, Order(planned=0, stored=((2, 4), (4, 9)))),
        request(2, None),
        request(3, Order(planned=1, stored=((6, 7),))),
        request(4, Order(planned=8, stored=((9, 9),))),
    ]
    commits: Commits[tuple[int, int, bool]] = Commits()
    seen: list[object] = []
    for own in order_as_planned(requests):
        seen += commits.before(own)
        seen.append(own.id)
        seen += commits.after(own, partial(_pair, own.id))
    first, last = (1, 4, True), (1, 9, False)  # of the request that is stored twice
    others = (0, 9, False), (3, 7, False), (4, 9, False)
    assert seen == [1, 3, first, 0, last, *others[:2], 4, others[2]]


def test_without_an_order_each_is_stored_before_the_next() -> None:
    requests = [request(id, None) for id in range(3)]
    commits: Commits[int] = Commits()
    assert order_as_planned(requests) == requests
    for own in requests:
        assert commits.before(own) == []
        assert commits.after(own, lambda length, use: length) == [9]
