"""The queue: order, silence, cancelling while queued and while running."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from mlxlab.engine import Worker
from mlxlab.server.scheduler import QueueFullError, Scheduler


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20))


async def items(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream if item is not None]


class Endless:
    """An iterator that tells when it runs and when it was closed."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.closed = threading.Event()

    def __call__(self) -> Iterator[int]:
        try:
            while True:
                self.running.set()
                time.sleep(0.005)
                yield 1
        finally:
            self.closed.set()


def test_streams_run_one_after_the_other_in_order(worker: Worker) -> None:
    scheduler = Scheduler(worker, limit=10)
    ran: list[str] = []

    def make(name: str) -> Iterator[str]:
        for i in range(3):
            ran.append(name)
            yield f"{name}{i}"

    async def body() -> None:
        names = "abcde"
        results = await asyncio.gather(
            *(items(scheduler.stream(partial(make, n))) for n in names)
        )
        assert results == [[f"{n}{i}" for i in range(3)] for n in names]

    run(body)
    assert "".join(ran) == "aaabbbcccdddeee"


def test_silence_is_told(worker: Worker) -> None:
    scheduler = Scheduler(worker, limit=1, heartbeat_s=0.01)

    def slow() -> Iterator[int]:
        time.sleep(0.2)
        yield 1

    async def body() -> None:
        heard = [item async for item in scheduler.stream(slow)]
        assert heard.count(None) >= 3
        assert heard[-1] == 1

    run(body)


def test_errors_arrive(worker: Worker) -> None:
    scheduler = Scheduler(worker, limit=1)

    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    async def body() -> None:
        stream = scheduler.stream(broken)
        assert await anext(stream) == 1
        with pytest.raises(KeyError):
            await anext(stream)
        await asyncio.sleep(0.05)
        assert scheduler.unfinished == 0

    run(body)


def test_the_queue_is_bounded(worker: Worker) -> None:
    scheduler = Scheduler(worker, limit=2, heartbeat_s=0.01)
    endless = Endless()

    async def body() -> None:
        streams = [scheduler.stream(endless) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        assert scheduler.waiting == 2
        with pytest.raises(QueueFullError):
            await anext(scheduler.stream(endless))
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)
        assert scheduler.unfinished == 0
        assert await items(scheduler.stream(lambda: iter([1]))) == [1]

    run(body)


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_running_stream_stops_at_its_next_item(worker: Worker, how: str) -> None:
    scheduler = Scheduler(worker, limit=1)
    endless = Endless()

    async def consume() -> None:
        async with aclosing(scheduler.stream(endless)) as stream:  # type: ignore[type-var]
            async for _ in stream:
                if how == "close":
                    break

    async def body() -> None:
        task = asyncio.create_task(consume())
        await asyncio.to_thread(endless.running.wait, 5)
        if how == "cancel":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.to_thread(endless.closed.wait, 2)
        assert await items(scheduler.stream(lambda: iter([1]))) == [1]

    run(body)


def test_a_queued_stream_never_starts(worker: Worker) -> None:
    scheduler = Scheduler(worker, limit=1, heartbeat_s=0.01)
    first, second = Endless(), Endless()

    async def body() -> None:
        running, queued = scheduler.stream(first), scheduler.stream(second)
        assert await anext(running) == 1
        assert await anext(queued) is None
        await queued.aclose()  # type: ignore[attr-defined]
        await running.aclose()  # type: ignore[attr-defined]
        await asyncio.to_thread(first.closed.wait, 5)
        assert await items(scheduler.stream(lambda: iter([1]))) == [1]

    run(body)
    assert not second.running.is_set()


def test_a_closed_worker_is_an_error(worker: Worker) -> None:
    scheduler = Scheduler(worker, limit=1)
    worker.close()

    async def body() -> None:
        with pytest.raises(RuntimeError):
            await anext(scheduler.stream(lambda: iter([1])))
        assert scheduler.unfinished == 0

    run(body)
