"""Mixed requests of eight clients, some cancelled: nothing fails, nothing grows."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxlab.server.server import Server
from tests.support.endpoint import Client, ask, raw_request, served, until, words
from tests.support.wire import TOOLS

CLIENTS = 8
SCHEMA = {
    "type": "object",
    "properties": {"found": {"type": "boolean"}},
    "required": ["found"],
    "additionalProperties": False,
}


def body_of(rng: random.Random) -> dict[str, Any]:
    """Return a request of one of the kinds that clients send."""
    body = ask(words(rng.randint(1, 200), 1000 * rng.randint(0, 3)))
    body |= {"system": words(50 * rng.randint(0, 2)), "max_tokens": rng.randint(1, 24)}
    kind = rng.choice(["text", "tools", "json", "thinking", "stop", "sampled"])
    if kind == "tools":
        body |= {"tools": TOOLS, "tool_choice": {"type": "any"}}
    elif kind == "json":
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    elif kind == "thinking":
        body |= {"thinking": {"type": "adaptive"}}
    elif kind == "stop":
        body["stop_sequences"] = ["w1", "e"]
    elif kind == "sampled":
        body |= {"temperature": 1.0, "top_p": 0.9}
    return body | {"stream": rng.random() < 0.5}


class Soak:
    """Clients that ask until all requests have been sent.

    Attributes:
        statuses: of all answers, and how often a client left.
        used: bytes in use by mlx after each request that was the last to end.
    """

    def __init__(self, server: Server, requests: int) -> None:
        self.server = server
        self.left = iter(range(requests))
        self.statuses: Counter[int | str] = Counter()
        self.used: list[int] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._talk, args=(seed,)) for seed in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: self.server._service.scheduler.unfinished == 0)

    def _talk(self, seed: int) -> None:
        rng = random.Random(seed)
        with Client(self.server.url) as client:
            while self._next():
                body = body_of(rng)
                if rng.random() < 0.15:
                    with raw_request(self.server, body | {"max_tokens": 400}):
                        time.sleep(rng.random() / 5)
                    status: int | str = "left"
                else:
                    status = client.post("/v1/messages", json=body).status_code
                with self._lock:
                    self.statuses[status] += 1
                    self.used.append(mx.get_active_memory())

    def _next(self) -> bool:
        with self._lock:
            return next(self.left, None) is not None


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("requests", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_nothing_fails_and_nothing_grows(requests: int) -> None:
    with served(strategy="paged:capacity=8MiB", chunk=256) as server:
        Soak(server, 40).run()  # what is made once
        gc.collect()
        threads, opened = threading.active_count(), files()
        soak = Soak(server, requests)
        soak.run()
        (loaded,) = server._service.pool._loaded.values()
        (engine,) = loaded.engines.values()
        server._worker.call(engine.strategy.check_integrity)
        assert engine.store.nbytes == engine.strategy.stored_bytes
        assert engine.users == 0
        gc.collect()
        assert threading.active_count() <= threads
        assert files() <= opened + 1
    assert set(soak.statuses) <= {200, 529, "left"}
    assert soak.statuses.total() == requests
    # Bytes in use vary with what runs; over all requests they have no trend.
    n = np.arange(len(soak.used))
    (slope, _), covariance = np.polyfit(n, np.array(soak.used, float), 1, cov=True)
    error = float(np.sqrt(covariance[0, 0]))
    print(f"slope {slope:.0f} ± {error:.0f} bytes a request, {dict(soak.statuses)}")
    assert slope < 4 * error + 2000
