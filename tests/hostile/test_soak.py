"""Ten minutes of mixed requests, some cancelled: the server's memory has no trend."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from itertools import count

import numpy as np
import pytest

from tests.server.test_soak import CLIENTS, body_of
from tests.support.endpoint import Client, ask, raw_request, words
from tests.support.limited_server import LimitedServer, limited_server

ROUNDS, ROUND_S = 20, 30.0


class Soak:
    """Clients that ask for some time.

    Attributes:
        statuses: of all answers, and how often a client left.
    """

    def __init__(self, server: LimitedServer) -> None:
        self.server = server
        self.statuses: Counter[int | str] = Counter()
        self._seeds = count()
        self._unique = count(10_000, 1_000)
        self._lock = threading.Lock()

    def run(self, seconds: float) -> int:
        """Return the bytes that the server takes when all have asked."""
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._talk, args=(next(self._seeds), end))
            for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.server.state() == "idle"
        return self.server.taken

    def _talk(self, seed: int, end: float) -> None:
        rng = random.Random(seed)
        with Client(self.server.url) as client:
            while time.monotonic() < end:
                body = body_of(rng) | {"system": words(40, next(self._unique))}
                if rng.random() < 0.15:
                    with raw_request(self.server, body | {"max_tokens": 400}):
                        time.sleep(rng.random() / 5)
                    status: int | str = "left"
                else:
                    status = client.post("/v1/messages", json=body).status_code
                with self._lock:
                    self.statuses[status] += 1


def fill_caches(server: LimitedServer) -> None:
    """Ask for counts of more text than the server keeps."""
    with Client(server.url) as client:
        for i in range(60):
            text = words(20_000, 100_000 * i)
            client.post("/v1/messages/count_tokens", json=ask(text)).raise_for_status()


@pytest.mark.slow
def test_memory_has_no_trend() -> None:
    with limited_server("paged:capacity=8MiB") as server:
        soak = Soak(server)
        soak.run(ROUND_S)  # what is made once
        fill_caches(server)
        soak.run(ROUND_S)
        taken = np.array([soak.run(ROUND_S) for _ in range(ROUNDS)]) / 2**20
    assert set(soak.statuses) <= {200, 529, "left"}
    assert soak.statuses.total() > ROUNDS * ROUND_S
    minutes = np.arange(ROUNDS) * ROUND_S / 60
    (slope, _), covariance = np.polyfit(minutes, taken, 1, cov=True)
    error = float(np.sqrt(covariance[0, 0]))
    print(
        f"{slope:+.2f} ± {error:.2f} MiB a minute at {taken.mean():.0f} MiB, "
        f"{dict(soak.statuses)}\n{taken.round().tolist()}"
    )
    assert slope < 3 * error + 0.2
