"""Counts requests in Prometheus' terms, and remembers the latest ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from mlxlab.server.explanation import Explanation
from mlxlab.server.model_pool import Holdings
from mlxlab.server.owners import Evicted

__all__ = ["Metrics", "Served"]

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)
_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Served:
    """One request that has ended.

    Attributes:
        t: arrival, Unix seconds.
        alias: the answering alias.
        prompt_tokens: tokens of the rendered prompt.
        reused_tokens: tokens restored from the cache.
        output_tokens: generated tokens.
        ttft_s: seconds from arrival to the first generated id; None without one.
        total_s: seconds from arrival to the end.
        outcome: the stop reason, ``cancelled`` or ``error``.
        disk_tokens: of the reused ones, those from disk.
        request: counts the requests of the server, from 1.
        session: of the client, by its own claim; see
            :class:`~mlxlab.server.event_log.Asker`.
        agent: the sub-agent, likewise; empty for the main loop.
        queue_s: of ``total_s``, seconds of rendering and of waiting for others.
        restore_s: seconds of planning, and of putting reused tokens in place.
        prefill_s: seconds of computing the other tokens of the prompt.
        decode_s: seconds from the first generated id to the end.
        cause: why most of the computed tokens were computed, see
            :class:`~mlxlab.server.explainer.Explanation`; empty until that is known.
        lost_tokens: computed tokens that a remedy would have saved.
        lost_s: their share of ``prefill_s``.
    """

    t: float
    alias: str
    model: str
    strategy: str
    prompt_tokens: int
    reused_tokens: int
    output_tokens: int
    ttft_s: float | None
    total_s: float
    outcome: str
    disk_tokens: int = 0
    request: int = 0
    session: str = ""
    agent: str = ""
    queue_s: float = 0.0
    restore_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    cause: str = ""
    lost_tokens: int = 0
    lost_s: float = 0.0


class Metrics:
    """Counters of one server, in their own registry."""

    def __init__(self) -> None:
        self._requests: deque[Served] = deque(maxlen=_REMEMBERED)
        self._lock = Lock()
        self._registry = CollectorRegistry()
        by = ("model", "strategy")
        self._answered = Counter(
            "mlxlab_requests",
            "Requests by outcome",
            (*by, "outcome"),
            registry=self._registry,
        )
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self._hit = self._counter("hit_tokens", "Prompt tokens restored from the cache")
        self._disk = self._counter("disk_tokens", "Of these, tokens from disk")
        self._output = self._counter("output_tokens", "Tokens generated")
        self._refused = Counter(
            "mlxlab_refused",
            "Requests refused because the queue was full",
            registry=self._registry,
        )
        self._ttft = Histogram(
            "mlxlab_ttft_seconds",
            "Arrival to first token",
            by,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._parts = Histogram(
            "mlxlab_part_seconds",
            "Parts of the time of a request",
            (*by, "part"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._missed = Counter(
            "mlxlab_missed_tokens",
            "Prompt tokens computed, by cause",
            (*by, "cause"),
            registry=self._registry,
        )
        self._lost = Counter(
            "mlxlab_lost_seconds",
            "Seconds of prefill that a rule or setting would have saved, by cause",
            (*by, "cause"),
            registry=self._registry,
        )
        self._evicted = Counter(
            "mlxlab_evicted_tokens",
            "Stored tokens that made room for others",
            (*by, "tier"),
            registry=self._registry,
        )
        self._queue = Gauge(
            "mlxlab_queue_depth", "Waiting requests", registry=self._registry
        )
        self._running = Gauge(
            "mlxlab_running", "Requests being answered", registry=self._registry
        )
        self._memory = Gauge(
            "mlxlab_memory_bytes",
            "The budget, and the most that was in use",
            ("kind",),
            registry=self._registry,
        )
        self._stored = Gauge(
            "mlxlab_stored_bytes", "Keys and values held", by, registry=self._registry
        )
        self._batched = Gauge(
            "mlxlab_model_batched",
            "Whether answers of a loaded model share a batch",
            ("model",),
            registry=self._registry,
        )
        self._pinned = Gauge(
            "mlxlab_pinned_tokens",
            "Stored tokens that are evicted last",
            registry=self._registry,
        )
        self._on_disk = Gauge(
            "mlxlab_disk_bytes", "Most bytes taken on disk", registry=self._registry
        )
        self._capacity = Gauge(
            "mlxlab_capacity_bytes",
            "Most bytes that may be held",
            ("tier",),
            registry=self._registry,
        )

    def _counter(self, name: str, text: str) -> Counter:
        labels = ("model", "strategy")
        return Counter(f"mlxlab_{name}", text, labels, registry=self._registry)

    @property
    def latest(self) -> list[Served]:
        """The latest requests, oldest first."""
        with self._lock:
            return list(self._requests)

    def add(self, served: Served) -> None:
        """Add a request that has ended."""
        with self._lock:
            self._requests.append(served)
        at = (served.model, served.strategy)
        self._answered.labels(*at, served.outcome).inc()
        self._prompt.labels(*at).inc(served.prompt_tokens)
        self._hit.labels(*at).inc(served.reused_tokens)
        self._disk.labels(*at).inc(served.disk_tokens)
        self._output.labels(*at).inc(served.output_tokens)
        if served.ttft_s is not None:
            self._ttft.labels(*at).observe(served.ttft_s)
        for part in ("queue", "restore", "prefill", "decode"):
            self._parts.labels(*at, part).observe(getattr(served, f"{part}_s"))

    def evict(self, served: tuple[str, str], gone: Evicted) -> None:
        """Count evicted tokens of a model and a strategy."""
        self._evicted.labels(*served, str(gone.tier)).inc(gone.tokens)

    def explain(self, served: Served, why: Explanation, seconds: float) -> None:
        """Add the causes of a request that was added before.

        Args:
            served: the request.
            why: its causes.
            seconds: of each computed token.
        """
        at = (served.model, served.strategy)
        computed = served.prompt_tokens - served.reused_tokens
        for cause, tokens in (why.tokens or {why.kind: computed}).items():
            self._missed.labels(*at, cause).inc(tokens)
        for (cause, _), tokens in why.losses.items():
            self._lost.labels(*at, cause).inc(tokens * seconds)
        lost = why.lost_tokens
        row = replace(served, cause=why.cause, lost_tokens=lost, lost_s=lost * seconds)
        with self._lock:
            for i in range(len(self._requests) - 1, -1, -1):
                if self._requests[i] is served:
                    self._requests[i] = row
                    break

    def refuse(self) -> None:
        """Count a request that was refused because the queue was full."""
        self._refused.inc()

    def text(
        self,
        running: int,
        queue: int,
        memory: Mapping[str, int],
        held: Holdings,
        batched: Mapping[str, bool],
    ) -> bytes:
        """Return the exposition format, with the current state."""
        for kind, nbytes in memory.items():
            self._memory.labels(kind).set(nbytes)
        self._on_disk.set(held.on_disk)
        self._capacity.labels("memory").set(held.capacity)
        self._capacity.labels("disk").set(held.disk)
        self._pinned.set(held.pinned)
        self._running.set(running)
        self._queue.set(queue)
        self._stored.clear()
        for at, nbytes in held.stored.items():
            self._stored.labels(*at).set(nbytes)
        self._batched.clear()
        for model, shares in batched.items():
            self._batched.labels(model).set(shares)
        return generate_latest(self._registry)
