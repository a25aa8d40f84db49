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

MINUTES = 10.0


class Soak:
    """Clients that ask for some minutes.

    Attributes:
        statuses: of all answers, and how often a client left.
        seconds, taken: bytes of memory that the server took, and when.
    """

    def __init__(self, server: LimitedServer, minutes: float) -> None:
        self.server = server
        self.end = time.monotonic() + 60 * minutes
        self.statuses: Counter[int | str] = Counter()
        self.seconds: list[float] = []
        self.taken: list[int] = []
        self._lock = threading.Lock()
        self._unique = count(10_000, 1_000)

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._talk, args=(seed,)) for seed in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _talk(self, seed: int) -> None:
        rng = random.Random(seed)
        with Client(self.server.url) as client:
            while time.monotonic() < self.end:
                body = body_of(rng) | {"system": words(40, next(self._unique))}
                if rng.random() < 0.15:
                    with raw_request(self.server, body | {"max_tokens": 400}):
                        time.sleep(rng.random() / 5)
                    status: int | str = "left"
                else:
                    status = client.post("/v1/messages", json=body).status_code
                with self._lock:
                    self.statuses[status] += 1
                    self.seconds.append(time.monotonic())
                    self.taken.append(self.server.taken)


def fill_caches(server: LimitedServer) -> None:
    """Ask for counts of more text than the server keeps."""
    with Client(server.url) as client:
        for i in range(120):
            text = words(20_000, 100_000 * i)
            client.post("/v1/messages/count_tokens", json=ask(text)).raise_for_status()


@pytest.mark.slow
def test_memory_has_no_trend() -> None:
    with limited_server("paged:capacity=8MiB") as server:
        Soak(server, 0.5).run()  # what is made once
        fill_caches(server)
        soak = Soak(server, MINUTES)
        soak.run()
    assert set(soak.statuses) <= {200, 529, "left"}
    assert soak.statuses.total() > 60 * MINUTES
    # Neighbours in time depend on each other, so the error is that of 20 means.
    minutes, taken = (
        np.array([part.mean() for part in np.array_split(np.array(values, float), 20)])
        for values in (soak.seconds, soak.taken)
    )
    (slope, _), covariance = np.polyfit(minutes / 60, taken / 2**20, 1, cov=True)
    error = float(np.sqrt(covariance[0, 0]))
    print(
        f"{slope:+.2f} ± {error:.2f} MiB a minute at {taken.mean() / 2**20:.0f} MiB, "
        f"{dict(soak.statuses)}"
    )
    assert slope < 3 * error + 0.2
