"""32 clients at once, and a long prefill: nothing is lost, nobody is kept waiting."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from mlxlab.server.scheduler import QueueFullError, Scheduler
from mlxlab.server.server import Server
from mlxlab.traces.bundled import load_trace
from mlxlab.web.sse import MessageAccumulator
from tests.support.endpoint import (
    PATIENCE_S,
    TOKEN,
    Client,
    ask,
    error_of,
    served,
    until,
)

CLIENTS = 32
ROUNDS = 2
#: Fewer than clients, so that some are told to come back.
QUEUE = 12
LIMIT_S = 60.0
#: Sooner than the server asks for, which is tuned to real answers.
RETRY_S = 0.3
LONG = " ".join(["and so on"] * 600)

Do = Callable[[httpx.AsyncClient, int], Awaitable[str]]


def answer_to(number: int) -> str:
    """What the script has for a question: no two are alike, in length either."""
    return f"Answer {number}{' yes' * (number % 7)}."


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    conversations = [
        {
            "match": f"^Question {number}$",
            "replies": [[{"type": "text", "text": answer_to(number)}]],
        }
        for number in range(CLIENTS * ROUNDS)
    ]
    script = {
        "conversations": conversations,
        "otherwise": [{"type": "text", "text": LONG}],
    }
    file = tmp_path / "script.json"
    file.write_text(json.dumps(script))
    with served(script=file, queue=QUEUE) as server:
        yield server


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=server.url, headers={"x-api-key": TOKEN}, timeout=PATIENCE_S
    ) as client:
        yield client


async def accepted(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    """Send a request again until it is let in."""
    while True:
        request = client.build_request("POST", "/v1/messages", json=body)
        response = await client.send(request, stream=True)
        if response.status_code != 529:
            return response
        await response.aread()
        assert error_of(response)["type"] == "overloaded_error"
        assert int(response.headers["retry-after"]) > 0
        await asyncio.sleep(RETRY_S)


async def whole(client: httpx.AsyncClient, number: int) -> str:
    body = ask(f"Question {number}", max_tokens=100)
    response = await accepted(client, body)
    await response.aread()
    assert response.status_code == 200, response.text
    check_answer(response.json(), number)
    return "end_turn"


async def streamed(client: httpx.AsyncClient, number: int) -> str:
    body = ask(f"Question {number}", max_tokens=100, stream=True)
    response = await accepted(client, body)
    message = MessageAccumulator()
    async for chunk in response.aiter_bytes():
        message.feed(chunk)
    assert response.status_code == 200
    check_answer(message.message, number)
    return "end_turn"


def check_answer(message: Any, number: int) -> None:
    assert message["content"] == [{"type": "text", "text": answer_to(number)}]
    assert message["stop_reason"] == "end_turn"
    # A word is a token or more.
    assert message["usage"]["output_tokens"] > number % 7


async def cancelled(client: httpx.AsyncClient, number: int) -> str:
    """Leave in the middle of a long answer."""
    body = ask("And then?", max_tokens=4000, stream=True)
    response = await accepted(client, body)
    assert response.status_code == 200
    async for line in response.aiter_lines():
        if "text_delta" in line:
            break
    await response.aclose()
    return "cancelled"


async def bad(client: httpx.AsyncClient, number: int) -> str:
    """Send what is refused, each time something else."""
    headers = {"content-type": "application/json"}
    faults: list[tuple[int, dict[str, Any]]] = [
        (400, {"content": b"{", "headers": headers}),
        (400, {"json": ask() | {"max_tokens": "many"}}),
        (401, {"json": ask(), "headers": {"x-api-key": "not the token"}}),
        (404, {"json": ask(model="gpt-oss")}),
    ]
    status, request = faults[number % len(faults)]
    response = await client.post("/v1/messages", **request)
    assert response.status_code == status, response.text
    error_of(response)
    return "refused"


def test_nothing_is_lost(server: Server) -> None:
    kinds: list[Do] = [whole, streamed, cancelled, bad] * (CLIENTS * ROUNDS // 4)
    random.Random(0).shuffle(kinds)

    async def use(client: httpx.AsyncClient, first: int) -> list[str]:
        return [await kinds[n](client, n) for n in range(first, first + ROUNDS)]

    async def load() -> Counter[str]:
        async with asyncio.timeout(LIMIT_S), client_of(server) as client:
            watch = asyncio.create_task(watch_over(server))
            lists = await asyncio.gather(
                *(use(client, n * ROUNDS) for n in range(CLIENTS))
            )
            watch.cancel()
            await watch
            return Counter(outcome for outcomes in lists for outcome in outcomes)

    outcomes = asyncio.run(load())
    share = CLIENTS * ROUNDS // 4
    assert outcomes == {"end_turn": 2 * share, "cancelled": share, "refused": share}
    check_log(server, outcomes)


def test_a_model_that_is_not_here_is_no_reason_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(scheduler: Scheduler) -> None:
        raise QueueFullError

    monkeypatch.setattr(Scheduler, "check", full)
    with served() as server, Client(server.url) as client:
        assert client.refusal(ask())[0] == 529
        status, message = client.refusal(ask(model="gpt-x"))
        assert status == 404
        assert "known: default" in message


async def watch_over(server: Server) -> None:
    """Look at health and metrics again and again; ends when it is cancelled."""
    looks = 0
    try:
        async with client_of(server) as client:
            while True:
                health = await client.get("/health")
                assert health.status_code == 200, health.text
                assert 0 <= health.json()["queue"] <= QUEUE
                metrics = await client.get("/metrics")
                assert metrics.status_code == 200, metrics.text
                assert "mlxlab_queue_depth" in metrics.text
                looks += 1
                await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        assert looks > 3


def check_log(server: Server, outcomes: Counter[str]) -> None:
    """The server has counted what the clients have seen."""
    until(lambda: requests_of(server)["cancelled"] >= outcomes["cancelled"])
    assert metric_of(server, "mlxlab_refused_total"), "the queue was never full"
    counted = requests_of(server)
    assert counted == {key: outcomes[key] for key in ("end_turn", "cancelled")}
    assert server.status().waiting == 0


def requests_of(server: Server) -> Counter[str]:
    """Requests by outcome, as /metrics has them."""
    samples = samples_of(server, "mlxlab_requests_total")
    return Counter({s.labels["outcome"]: int(s.value) for s in samples})


def metric_of(server: Server, name: str) -> float:
    return sum(sample.value for sample in samples_of(server, name))


def samples_of(server: Server, name: str) -> list[Sample]:
    metrics = httpx.get(f"{server.url}/metrics", headers={"x-api-key": TOKEN}).text
    return [
        sample
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name
    ]


def test_a_long_prefill_does_not_block_others() -> None:
    body: Any = load_trace("loop").inference[0].body
    body = body | {"model": "default", "max_tokens": 4, "stream": True}

    async def prefill(server: Server) -> int:
        async with client_of(server) as client:
            response = await client.post("/v1/messages", json=body)
            message = MessageAccumulator()
            message.feed(response.content)
            assert message.message is not None
            usage = message.message["usage"]
            return int(usage["input_tokens"] + usage["cache_creation_input_tokens"])

    async def load(server: Server) -> tuple[int, list[float]]:
        seconds: list[float] = []
        async with asyncio.timeout(LIMIT_S), client_of(server) as client:
            prefilled = asyncio.create_task(prefill(server))
            while not prefilled.done():
                begun = time.perf_counter()
                assert (await client.get("/health")).status_code == 200
                seconds.append(time.perf_counter() - begun)
                await asyncio.sleep(0.01)
            return await prefilled, seconds

    with served() as server:
        tokens, seconds = asyncio.run(load(server))
    assert tokens > 14_000
    # A blocked loop answers one or two, and each after the whole prefill.
    assert len(seconds) > 20
    assert sorted(seconds)[len(seconds) * 9 // 10] < 0.5, seconds
