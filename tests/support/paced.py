"""A server's answers, at a pace at which a test can interrupt them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mlxlab.engine import PrefillProgress, Request
from mlxlab.server import service
from mlxlab.server.generation import Item, Job, PromptPlanned, request_of

__all__ = ["Paced"]


class Paced:
    """Stands in for ``request_of`` and tells when a job is well in prefill or decode.

    Attributes:
        started: prompts planned so far.

    Its pace, seconds an item, makes sure that no job ends before it is cancelled.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.in_prefill = threading.Event()
        self.in_decode = threading.Event()
        self.started = 0
        self.pace_s = 0.01
        monkeypatch.setattr(service, "request_of", self._request)

    def _request(self, job: Job, put: Callable[[Item], object]) -> Request:
        taken_in = 0

        def paced(item: Item) -> None:
            nonlocal taken_in
            if isinstance(item, PromptPlanned):
                self.started += 1
            elif isinstance(item, PrefillProgress):
                taken_in += item.tokens
                if taken_in > 100:
                    self.in_prefill.set()
            elif isinstance(item, tuple):
                self.in_decode.set()
            time.sleep(self.pace_s)
            put(item)

        return request_of(job, paced)
