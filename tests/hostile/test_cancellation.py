"""Many clients that leave at random: the server is idle afterwards, and unharmed."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.server.test_soak import body_of
from tests.support.endpoint import Client, ask, raw_request, until, words
from tests.support.limited_server import LimitedServer, limited_server

#: Seconds until nothing runs any more: the chunk in work, on a busy machine too.
IDLE_S = 5.0


def attack(server: LimitedServer, clients: int, each: int) -> Counter[int | str]:
    """Ask from all clients at once, and leave half of the answers at random."""
    statuses: Counter[int | str] = Counter()
    lock = threading.Lock()

    def talk(seed: int) -> None:
        rng = random.Random(seed)
        with Client(server.url) as client:
            for _ in range(each):
                status: int | str = "left"
                body = body_of(rng)
                if rng.random() < 0.5:
                    with raw_request(server, body | {"max_tokens": 400}):
                        time.sleep(rng.random() ** 2)
                else:
                    status = client.post("/v1/messages", json=body).status_code
                with lock:
                    statuses[status] += 1

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def answers(server: LimitedServer) -> list[object]:
    with Client(server.url) as client:
        return [client.ask(ask(words(n), max_tokens=20))["content"] for n in (3, 300)]


def opened(server: LimitedServer) -> tuple[int, int]:
    """Return the number of open files and of threads."""
    process = Path(f"/proc/{server.process.pid}")
    return len(list((process / "fd").iterdir())), len(
        list((process / "task").iterdir())
    )


def is_idle(server: LimitedServer) -> bool:
    with Client(server.url) as client:
        lines = client.get("/metrics").text.splitlines()
    return {"mlxlab_running 0.0", "mlxlab_queue_depth 0.0"} <= set(lines)


@pytest.mark.parametrize(
    ("strategy", "clients", "each"),
    [
        ("paged:capacity=8MiB", 16, 4),
        *(
            pytest.param(strategy, clients, 40, marks=pytest.mark.slow)
            for strategy in ("paged:capacity=8MiB", "block-hash", "segmented", "prefix")
            for clients in (32, 128)
        ),
    ],
)
def test_clients_that_leave_harm_nothing(
    strategy: str, clients: int, each: int
) -> None:
    with limited_server(strategy) as server:
        before = answers(server)
        attack(server, 8, 2)  # what is made once
        files, threads = opened(server)
        statuses = attack(server, clients, each)
        until(lambda: is_idle(server), IDLE_S)
        assert answers(server) == before
        until(lambda: opened(server)[0] <= files + 2, 20)
        assert opened(server)[1] <= threads + 2
        assert server.process.poll() is None
        assert "Traceback" not in server.printed
        print(f"{strategy} {dict(statuses)}, {server.peak >> 20} MiB")
    assert set(statuses) <= {200, 529, "left"}
    assert statuses.total() == clients * each
    assert statuses[200]
