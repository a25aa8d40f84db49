"""Follows one request of a server: its events, its seconds, its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from mlxlab.engine import PrefillProgress, Request
from mlxlab.server.event_log import Asker, EventLog, Stage
from mlxlab.server.events import AnswerWriter
from mlxlab.server.generation import Completed, Item, PromptPlanned
from mlxlab.server.metrics import Metrics, Served
from mlxlab.server.prepare import Prepared
from mlxlab.traces.schema import Generated, Order, Timing

__all__ = ["RequestLog"]


class RequestLog:
    """What is known of one request, from its arrival on.

    Args:
        events: take what happens.
        metrics: count the request at its end, if it came into the queue.
        asker: who sends it.
        model: as the client names it.
        note: takes facts for a recording at its end.

    Attributes:
        request: on the worker; None before it was made.
        outcome: for an answer without a stop reason.
    """

    def __init__(
        self,
        events: EventLog,
        metrics: Metrics,
        asker: Asker,
        model: str,
        note: Callable[..., object],
    ) -> None:
        self.request: Request | None = None
        self.outcome = "cancelled"
        self._arrived, self._clock = time.time(), time.monotonic()
        self._events = events
        self._metrics = metrics
        self._asker = asker
        self._note = note
        self._queued: tuple[Prepared, AnswerWriter] | None = None
        self._ttft_s: float | None = None
        self._disk_tokens = self._done_tokens = 0
        self._has_ended = False
        self._number = events.arrive(asker, model)

    def queue(self, prepared: Prepared, writer: AnswerWriter) -> None:
        """Note that the request is rendered and waits."""
        self._queued = prepared, writer
        self._add(
            Stage.QUEUED,
            alias=prepared.name,
            strategy=prepared.alias.strategy,
            prompt_tokens=len(prepared.prompt),
        )

    def take(self, item: Item) -> None:
        """Note what the worker has made."""
        if isinstance(item, PromptPlanned):
            plan = item.plan
            self._disk_tokens = plan.disk_tokens
            self._add(
                Stage.PLANNED, reused_tokens=plan.reused, disk_tokens=plan.disk_tokens
            )
        elif isinstance(item, PrefillProgress):
            self._done_tokens += item.tokens
            self._add(Stage.PROGRESS, done_tokens=self._done_tokens)
        elif not isinstance(item, Completed) and self._ttft_s is None:
            self._ttft_s = time.monotonic() - self._clock
            self._add(Stage.FIRST_TOKEN)

    def conclude(self) -> None:
        """Note the end, once."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._queued is None:
            self._add(Stage.ENDED, outcome="refused")
            return
        served = self._served(*self._queued)
        self._metrics.add(served)
        self._add(Stage.ENDED, **asdict(served))
        if self.request is not None and self.request.planned is not None:
            self._record(self._queued[0], self.request, served)

    def _record(self, prepared: Prepared, request: Request, served: Served) -> None:
        assert request.planned is not None
        self._note(
            generated=Generated(
                tokenizer=prepared.folder.tokenizer_digest,
                ids=tuple(request.answer),
                thinking=prepared.thinking,
            ),
            order=Order(planned=request.planned, stored=tuple(request.stored)),
            timing=Timing(
                queue=served.queue_s,
                restore=served.restore_s,
                prefill=served.prefill_s,
                decode=served.decode_s,
            ),
        )

    def _served(self, prepared: Prepared, writer: AnswerWriter) -> Served:
        usage, alias = writer.usage, prepared.alias
        total_s = time.monotonic() - self._clock
        restore_s = self.request.restore_s if self.request else 0.0
        prefill_s = self.request.prefill_s if self.request else 0.0
        begun_s = total_s if self._ttft_s is None else self._ttft_s
        return Served(
            t=self._arrived,
            alias=prepared.name,
            model=alias.model,
            strategy=alias.strategy,
            prompt_tokens=len(prepared.prompt),
            reused_tokens=usage.cache_read if usage else 0,
            output_tokens=len(writer.ids),
            ttft_s=self._ttft_s,
            total_s=total_s,
            outcome=writer.stop_reason or self.outcome,
            disk_tokens=self._disk_tokens,
            request=self._number,
            session=self._asker.session,
            agent=self._asker.agent,
            queue_s=max(begun_s - restore_s - prefill_s, 0.0),
            restore_s=restore_s,
            prefill_s=prefill_s,
            decode_s=total_s - begun_s,
        )

    def _add(self, stage: Stage, **facts: object) -> None:
        self._events.add(self._number, stage, **facts)
