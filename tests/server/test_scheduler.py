"""The queue: order, silence, cancelling while queued and while running.

In place of answers, plain iterators run here.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from mlxlab.engine import Worker
from mlxlab.server.scheduler import QueueFullError, Scheduler


class Iterated:
    """A request that puts the items of an iterator."""

    def __init__(self, put: Callable[[Any], object], source: Iterable[Any]) -> None:
        self.put = put
        self.source = iter(source)
        self.done: Callable[[], object] = lambda: None
        self.error: Exception | None = None


class Turns:
    """A runner that takes one item of each of the first requests in a step."""

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self.live: list[Iterated] = []

    def add(self, request: Iterated) -> None:
        self.live.append(request)

    def cancel(self, request: Iterated) -> None:
        if request in self.live:
            self.end(request)

    def close(self, error: Exception) -> None:
        for request in list(self.live):
            self.end(request, error)

    def step(self) -> bool:
        for request in self.live[: self.most]:
            try:
                request.put(next(request.source))
            except StopIteration:
                self.end(request)
            except Exception as error:
                self.end(request, error)
        return bool(self.live)

    def end(self, request: Iterated, error: Exception | None = None) -> None:
        self.live.remove(request)
        getattr(request.source, "close", lambda: None)()
        request.error = error
        request.done()


def make_scheduler(worker: Worker, most: int = 1, **given: Any) -> Any:
    runner: Any = Turns(most)
    return Scheduler(worker, runner, **given)


def of(make: Callable[[], Iterable[Any]]) -> Any:
    """Return what makes a request of an iterator's items."""
    return lambda put: Iterated(put, make())


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
    scheduler = make_scheduler(worker, limit=10)
    ran: list[str] = []

    def make(name: str) -> Iterator[str]:
        for i in range(3):
            ran.append(name)
            yield f"{name}{i}"

    async def body() -> None:
        names = "abcde"
        results = await asyncio.gather(
            *(items(scheduler.stream(of(partial(make, n)))) for n in names)
        )
        assert results == [[f"{n}{i}" for i in range(3)] for n in names]

    run(body)
    assert "".join(ran) == "aaabbbcccdddeee"


def test_as_many_streams_run_at_once_as_the_runner_takes(worker: Worker) -> None:
    scheduler = make_scheduler(worker, most=2, limit=1, heartbeat_s=0.01)
    ran: list[str] = []

    def make(name: str) -> Iterator[str]:
        for _ in range(50):
            ran.append(name)
            time.sleep(0.005)
            yield name

    async def body() -> None:
        tasks = [
            asyncio.create_task(items(scheduler.stream(of(partial(make, n)))))
            for n in "abc"
        ]
        await asyncio.sleep(0.05)
        assert scheduler.waiting == 1
        with pytest.raises(QueueFullError):
            await anext(scheduler.stream(of(lambda: [1])))
        assert await asyncio.gather(*tasks) == [[n] * 50 for n in "abc"]

    run(body)
    assert set(ran[:60]) == {"a", "b"}


def test_other_calls_come_between_the_steps(worker: Worker) -> None:
    scheduler = make_scheduler(worker, limit=1)
    endless = Endless()

    async def body() -> None:
        async with aclosing(scheduler.stream(of(endless))) as stream:
            await anext(stream)
            assert await asyncio.wrap_future(worker.submit(lambda: 7)) == 7
            await anext(stream)

    run(body)


def test_a_worker_finishes_what_it_has_begun(worker: Worker) -> None:
    scheduler = make_scheduler(worker, most=2, limit=1)
    endless = Endless()

    def long() -> Iterator[int]:
        for i in range(100):
            time.sleep(0.002)
            yield i

    async def body() -> None:
        left, read = scheduler.stream(of(endless)), scheduler.stream(of(long))
        await anext(left)
        first = await anext(read)
        closing = asyncio.create_task(asyncio.to_thread(worker.close))
        rest = await items(read)
        assert [first, *rest] == list(range(100))
        assert not closing.done()
        await left.aclose()
        await closing
        assert scheduler.unfinished == 0

    run(body)
    assert endless.closed.is_set()


def test_silence_is_told(worker: Worker) -> None:
    scheduler = make_scheduler(worker, limit=1, heartbeat_s=0.01)

    def slow() -> Iterator[int]:
        time.sleep(0.2)
        yield 1

    async def body() -> None:
        heard = [item async for item in scheduler.stream(of(slow))]
        assert heard.count(None) >= 3
        assert heard[-1] == 1

    run(body)


def test_errors_arrive(worker: Worker) -> None:
    scheduler = make_scheduler(worker, limit=1)

    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    async def body() -> None:
        stream = scheduler.stream(of(broken))
        assert await anext(stream) == 1
        with pytest.raises(KeyError):
            await anext(stream)
        await asyncio.sleep(0.05)
        assert scheduler.unfinished == 0

    run(body)


def test_the_queue_is_bounded(worker: Worker) -> None:
    scheduler = make_scheduler(worker, limit=2, heartbeat_s=0.01)
    endless = Endless()

    async def body() -> None:
        streams = [scheduler.stream(of(endless)) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        assert scheduler.waiting == 2
        with pytest.raises(QueueFullError):
            await anext(scheduler.stream(of(endless)))
        for stream in streams:
            await stream.aclose()
        await asyncio.sleep(0.1)
        assert scheduler.unfinished == 0
        assert await items(scheduler.stream(of(lambda: [1]))) == [1]

    run(body)


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_running_stream_stops_at_its_next_item(worker: Worker, how: str) -> None:
    scheduler = make_scheduler(worker, limit=1)
    endless = Endless()

    async def consume() -> None:
        async with aclosing(scheduler.stream(of(endless))) as stream:
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
        assert await items(scheduler.stream(of(lambda: [1]))) == [1]

    run(body)


def test_a_queued_stream_never_starts(worker: Worker) -> None:
    scheduler = make_scheduler(worker, limit=1, heartbeat_s=0.01)
    first, second = Endless(), Endless()

    async def body() -> None:
        running, queued = scheduler.stream(of(first)), scheduler.stream(of(second))
        assert await anext(running) == 1
        assert await anext(queued) is None
        await queued.aclose()
        await running.aclose()
        await asyncio.to_thread(first.closed.wait, 5)
        assert await items(scheduler.stream(of(lambda: [1]))) == [1]

    run(body)
    assert not second.running.is_set()


def test_a_closed_worker_is_an_error(worker: Worker) -> None:
    scheduler = make_scheduler(worker, limit=1)
    worker.close()

    async def body() -> None:
        with pytest.raises(RuntimeError):
            await anext(scheduler.stream(of(lambda: [1])))
        assert scheduler.unfinished == 0

    run(body)
