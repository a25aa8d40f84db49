"""The memory budget holds at every moment: weights, caches, what a prefill needs."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxlab.engine import Engine, Memory, Request, Runner, load_model
from mlxlab.engine.samplers import greedy
from mlxlab.errors import MemoryFullError, RequestError, StrategyError
from mlxlab.models.folder import find_model
from mlxlab.prompt import Prompt
from mlxlab.server.server import Server
from mlxlab.strategies import make_strategy
from tests.support.endpoint import Client, ask, copy_tiny, served, until, words

MIB = 2**20


@contextmanager
def sampled() -> Iterator[list[int]]:
    """Collect the bytes in use and those that mlx keeps for reuse, all the time."""
    mx.clear_cache()
    before, seen = mx.get_active_memory(), [0]
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(0.0005):
            seen.append(mx.get_active_memory() + mx.get_cache_memory() - before)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        stopped.set()
        thread.join()


def talk(server: Server, seed: int, requests: int) -> list[int]:
    rng = random.Random(seed)
    statuses = []
    with Client(server.url) as client:
        for _ in range(requests):
            text = words(rng.randint(1, 900), 1000 * rng.randint(1, 3))
            body = ask(text, max_tokens=rng.randint(1, 60))
            statuses.append(client.post("/v1/messages", json=body).status_code)
    return statuses


@pytest.mark.parametrize("mebibytes", [48, pytest.param(96, marks=pytest.mark.slow)])
def test_the_budget_is_kept_by_agents_at_once(mebibytes: int) -> None:
    statuses: list[int] = []
    budget = mebibytes * MIB
    with sampled() as seen, served(memory=budget) as server:
        threads = [
            threading.Thread(target=lambda n=n: statuses.extend(talk(server, n, 5)))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: server._service.scheduler.unfinished == 0)
        status = server.status()
        with Client(server.url) as client:
            metrics = client.get("/metrics").text
    assert statuses == [200] * 30
    assert max(seen) <= budget
    assert budget / 4 < status.peak <= budget
    assert f"of {mebibytes / 1024:.1f} GiB used at most" in repr(status)
    found = dict(line.rsplit(" ", 1) for line in metrics.splitlines())
    assert float(found['mlxlab_memory_bytes{kind="budget"}']) == budget
    assert float(found['mlxlab_memory_bytes{kind="peak"}']) == status.peak


def test_a_prompt_that_never_fits_is_refused_and_others_go_on() -> None:
    with served(memory=24 * MIB) as server, Client(server.url) as client:
        status, message = client.refusal(ask(words(8000)))
        assert status == 400
        assert message.startswith("prompt is too long: 3")
        assert "MiB of --memory are free" in message
        assert client.ask(ask(words(100)))["stop_reason"]


def test_a_capacity_that_was_not_given_leaves_room(tmp_path: Any) -> None:
    path = tmp_path / "trace.jsonl"
    with served(memory=64 * MIB) as server, Client(server.url) as client:
        server.record(path)
        client.ask(ask())
        (loaded,) = server._service.pool._loaded.values()
        (engine,) = loaded.engines.values()
        half = (64 * MIB - loaded.weights) // 2
        assert half - MIB < engine.strategy.capacity <= half
    assert f'"strategy":"paged:capacity={half // MIB}MiB"' in path.read_text()


def test_a_capacity_that_leaves_no_room_is_refused() -> None:
    whole = f"paged:capacity={64 * MIB}"
    refused = pytest.raises(StrategyError, match=r"of --memory 64MiB, 4\dMiB are left")
    with refused, served(strategy=whole, memory=64 * MIB):
        pass
    with served(memory=64 * MIB) as server, Client(server.url) as client:
        with refused:
            server.configure(strategy=whole)
        assert client.ask(ask(words(100)))["stop_reason"]


class Small(Memory):
    """A budget whose account the test sets."""

    free = 10**12

    @property
    def room(self) -> int:
        return self.free


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(find_model())


def request(engine: Engine, seed: int, length: int, **given: Any) -> Request:
    ids = np.random.default_rng(seed).integers(10, 3000, length)
    items: list[Any] = []
    n = given.pop("max_tokens", 8)
    return Request(engine, Prompt.of(ids), n, greedy, (), (), items.append, **given)


def small_engine(model: Any, memory: Memory) -> Engine:
    strategy = make_strategy("none", layout=find_model().layout)
    return Engine(model, strategy, memory=memory)


def test_a_prompt_waits_until_there_is_room(model: Any) -> None:
    mx.clear_cache()
    memory = Memory(20 * MIB)  # of which 15 may be used; one needs about 12
    engine, runner = small_engine(model, memory), Runner()
    first, second = (request(engine, n, 7000, max_tokens=40) for n in (1, 2))
    runner.add(first)
    runner.add(second)
    while runner.step():
        assert runner.running <= 1
    assert (len(first.answer), len(second.answer)) == (40, 40)


def test_what_nobody_uses_is_released_first(model: Any) -> None:
    memory, released = Small(MIB), []

    def release() -> bool:
        released.append(memory.free)
        memory.free += MIB
        return True

    memory.free = 0
    runner = Runner(release=release)
    only = request(small_engine(model, memory), 1, 500)
    runner.add(only)
    while runner.step():
        pass
    assert released == [0, MIB][: len(released)]
    assert len(only.answer) == 8


def test_without_room_a_prompt_alone_is_refused(model: Any) -> None:
    memory = Small(MIB)
    memory.free = 1000
    runner = Runner()
    only = request(small_engine(model, memory), 1, 500)
    runner.add(only)
    assert not runner.step()
    assert isinstance(only.error, RequestError)


def test_an_answer_ends_before_memory_runs_out(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    memory, runner = Small(MIB), Runner()
    engine = small_engine(model, memory)
    old, young = (request(engine, n, 100, max_tokens=50) for n in (1, 2))
    runner.add(old)
    runner.add(young)
    while len(young.answer) < 5:
        runner.step()
    memory.free = 600 * 1024  # a step of one answer needs 384 KiB, of two 768
    while runner.step():
        pass
    assert (len(old.answer), len(young.answer)) == (50, 5)
    assert young.error is None
    assert "an answer ends early" in caplog.text


def test_answers_come_before_filling_the_cache(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner()
    engine = small_engine(model, Small(MIB))
    fill = request(engine, 1, 3000, max_tokens=0)
    runner.add(fill)
    runner.step()
    # There is room as soon as the other has ended.
    room = property(lambda own: 10**12 if fill.error is not None else 0)
    monkeypatch.setattr(Small, "room", room)
    answer = request(engine, 2, 100)
    runner.add(answer)
    while runner.step():
        pass
    assert isinstance(fill.error, MemoryFullError)
    assert (answer.error, len(answer.answer)) == (None, 8)


def test_chunks_get_shorter_as_room_gets_less(model: Any) -> None:
    memory = Memory(2**30)
    engine = small_engine(model, memory)
    engine.prefill(request(engine, 1, 3000).prompt)
    chunks = []
    for free in (2**30, 30 * MIB, 10 * MIB, 0):
        small = Small(2**30)
        small._chunks = memory._chunks
        small.free = free
        chunks.append(small.chunk(model, 2048, 3000, 1536))
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[0] == 2048
    assert 16 <= chunks[-1] < chunks[2] < chunks[1]


def test_what_a_chunk_needs_is_foreseen(model: Any) -> None:
    memory = Memory(2**30)
    engine = small_engine(model, memory)
    engine.prefill(request(engine, 1, 3000).prompt)
    foreseen = memory.needed(model, 1024, 6000)
    mx.reset_peak_memory()
    prefill = engine.begin(request(engine, 2, 6001).prompt)
    engine.chunk = 1024
    for _ in engine.fill(prefill):
        found = mx.get_peak_memory() - mx.get_active_memory()
    assert found <= foreseen < 3 * found


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Garbage stays until the server itself collects it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_dropped_tokens_are_free_at_once(uncollected: None) -> None:
    with served() as server, Client(server.url) as client:
        pool, call = server._service.pool, server._worker.call
        before = call(mx.get_active_memory)
        client.ask(ask(words(1500), max_tokens=2))
        until(lambda: server._service.scheduler.unfinished == 0)
        held = call(lambda: sum(pool.stored.values()))
        assert call(mx.get_active_memory) >= before + held > before + 4 * MIB
        assert call(pool.release)
        assert call(mx.get_active_memory) < before + MIB


def test_models_that_are_replaced_are_free_at_once(
    uncollected: None, tmp_path: Path
) -> None:
    with served(memory=24 * MIB) as server, Client(server.url) as client:
        for name in ("a", "b", "c", "d"):
            client.ask(ask(max_tokens=2))
            server.configure(model=copy_tiny(tmp_path / name))
        assert client.ask(ask(max_tokens=2))["stop_reason"]
