"""The worker runs everything on one thread and passes values and errors back."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from mlxlab.engine import Worker


def test_calls_run_in_order_on_one_other_thread() -> None:
    with Worker() as worker:
        threads = {worker.call(threading.get_ident) for _ in range(3)}
        order: list[int] = []
        for future in [worker.submit(order.append, i) for i in range(50)]:
            future.result()
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert order == list(range(50))


def test_errors_reach_the_caller_and_the_worker_goes_on() -> None:
    with Worker() as worker:
        with pytest.raises(ZeroDivisionError):
            worker.call(lambda: 1 / 0)
        assert worker.call(lambda: 1) == 1


def test_stream_passes_items_as_they_are_made() -> None:
    made: list[int] = []

    def count(n: int) -> Iterator[int]:
        for i in range(n):
            made.append(i)
            yield i

    with Worker() as worker:
        assert list(worker.stream(count, 5)) == [0, 1, 2, 3, 4]


def test_a_closed_stream_stops_its_source() -> None:
    closed = threading.Event()

    def forever() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with Worker() as worker:
        stream = worker.stream(forever)
        next(stream)
        stream.close()
        assert closed.wait(5)
        assert worker.call(lambda: "free") == "free"


def test_an_error_in_a_stream_is_raised_behind_its_items() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("x")

    with Worker() as worker:
        stream = worker.stream(broken)
        assert next(stream) == 1
        with pytest.raises(KeyError):
            next(stream)


def test_a_closed_worker_refuses_work() -> None:
    worker = Worker()
    worker.close()
    worker.close()
    assert not worker.is_alive
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(lambda: None)


@pytest.mark.parametrize("ending", ["worker.close()", "pass"])
def test_a_process_that_has_decoded_ends_cleanly(ending: str) -> None:
    code = (
        "from mlxlab import Prompt, find_model, make_strategy\n"
        "from mlxlab.engine import Engine, Worker, load_model\n"
        "worker = Worker()\n"
        "model = worker.call(load_model, find_model())\n"
        "engine = Engine(model, make_strategy('none'))\n"
        "list(worker.stream(engine.stream, Prompt.of(range(64)), max_tokens=3))\n"
    )
    for _ in range(3):  # the failure occurred every other time
        subprocess.run([sys.executable, "-c", code + ending], check=True, timeout=60)


def test_nothing_is_put_behind_the_end() -> None:
    """A closing worker refuses calls that it would never run."""
    worker = Worker()
    begun, going_on = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return going_on.wait(20)

    running = worker.submit(wait)
    assert begun.wait(20)
    closing = threading.Thread(target=worker.close)
    closing.start()
    while worker.is_alive:
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(int)
    going_on.set()
    assert running.result(20)
    closing.join(20)
    assert not closing.is_alive()


def test_an_interrupt_does_not_wait_for_a_long_call() -> None:
    done = threading.Event()

    def interrupt() -> None:
        with Worker() as worker:
            worker.submit(done.wait, 60)
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert time.monotonic() - begun < 30
    done.set()
