"""Follows one request of a server: its events, its seconds, its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from mlxlab.engine import Engine, PrefillProgress, Request, Stored
from mlxlab.server.clock import now
from mlxlab.server.event_log import Asker, EventLog, Stage
from mlxlab.server.events import AnswerWriter
from mlxlab.server.explainer import Asked, Explainer
from mlxlab.server.generation import Completed, Item, PromptPlanned
from mlxlab.server.habits import Habits
from mlxlab.server.lanes import Setting
from mlxlab.server.metrics import Metrics, Served
from mlxlab.server.owners import Owners
from mlxlab.server.prepare import Prepared
from mlxlab.server.schema import InferenceRequest
from mlxlab.server.side_requests import SideRequests
from mlxlab.server.strip import make_strip
from mlxlab.strategies import Plan
from mlxlab.strategies.use import Learned, Use
from mlxlab.traces.schema import Generated, Order, Timing, Told

__all__ = ["Journal", "RequestLog"]


@dataclass(frozen=True, slots=True)
class Journal:
    """What a server notes of all its requests.

    Attributes:
        events: take what happens.
        metrics: count the requests that came into the queue.
        owners: who stored what, on the worker.
        sides: recognizes side requests.
        explainer: finds the causes; None where that is turned off.
        habits: what policies learned before, and learn.
    """

    events: EventLog
    metrics: Metrics
    owners: Owners
    sides: SideRequests
    explainer: Explainer | None
    habits: Habits


class RequestLog:
    """What is known of one request, from its arrival on.

    Args:
        journal: takes what happens.
        asker: who sends it.
        asked: as the client sent it.
        note: takes facts for a recording at its end.

    Attributes:
        request: on the worker; None before it was made.
        outcome: for an answer without a stop reason.
    """

    def __init__(
        self,
        journal: Journal,
        asker: Asker,
        asked: InferenceRequest,
        note: Callable[..., object],
    ) -> None:
        self.request: Request | None = None
        self.outcome = "cancelled"
        self._arrived, self._clock = time.time(), time.monotonic()
        self._journal = journal
        self._asker = asker
        self._asked = asked
        self._note = note
        self._queued: tuple[Prepared, AnswerWriter] | None = None
        self._setting: Setting | None = None
        self._plan: Plan | None = None
        self._ttft_s: float | None = None
        self._disk_tokens = self._done_tokens = 0
        self._has_ended = False
        self._use = Use(asker.name, now())
        self._number = journal.events.arrive(asker, asked.model)

    def queue(
        self, prepared: Prepared, writer: AnswerWriter, setting: Setting, *, full: bool
    ) -> None:
        """Note that the request is rendered and waits.

        Args:
            prepared: the rendered request.
            writer: of its answer.
            setting: how it is served.
            full: whether no further answer may run now.
        """
        behind = self._journal.events.ahead(full=full)
        self._queued, self._setting = (prepared, writer), setting
        form = self._asked.output_config
        side = self._journal.sides.take(
            setting.credential,
            self._asker.session,
            has_tools=bool(self._asked.tools),
            wants_json=bool(form and form.format),
        )
        self._use = replace(self._use, side=side)
        self._add(
            Stage.QUEUED,
            alias=prepared.name,
            strategy=prepared.alias.strategy,
            prompt_tokens=len(prepared.prompt),
            behind=behind,
        )

    def follow(self, request: Request) -> None:
        """Follow the request on the worker, before it begins."""
        self.request, put, ending = request, request.put, request.use

        def noted(item: Plan | PrefillProgress | int) -> object:
            if isinstance(item, Plan):
                self._begin(request, item)
            return put(item)

        def use(running: bool) -> Use:
            end = ending(running)
            if not request.engine.commits:
                self._use = replace(self._use, learned=self._recall(request.engine))
            return replace(
                self._use,
                ended=None if running else now(),
                stop=end.stop,
                tools=end.tools,
                running=running,
            )

        request.put, request.committed, request.use = noted, self._commit, use

    def _recall(self, engine: Engine) -> Learned | None:
        assert self._setting is not None
        credential = self._setting.credential
        return self._journal.habits.recall(engine.strategy.eviction, credential)

    def _begin(self, request: Request, plan: Plan) -> None:
        self._plan, explainer = plan, self._journal.explainer
        if explainer is None:
            return
        assert self._setting is not None
        asked = Asked(self._number, request.prompt, self._setting, self._use)
        explainer.plan(asked, request.engine, plan)

    def _commit(self, stored: Stored) -> None:
        assert self.request is not None
        assert self._plan is not None
        assert self._queued is not None
        assert self._setting is not None
        self._use = stored.use
        alias, engine = self._queued[0].alias, self.request.engine
        policy = engine.strategy.eviction
        self._journal.habits.note(policy, self._setting.credential)
        owners, metrics = self._journal.owners, self._journal.metrics
        for gone in owners.note(engine, self._number, self._plan, stored.commit):
            tier = str(gone.tier)
            self._add(Stage.EVICTED, tokens=gone.tokens, of=gone.of, tier=tier)
            metrics.evict((alias.model, alias.strategy), gone)
        if self._journal.explainer is not None:
            self._journal.explainer.store(self._number, stored, self.request.answer)

    def take(self, item: Item) -> None:
        """Note what the worker has made."""
        if isinstance(item, PromptPlanned):
            plan = item.plan
            self._disk_tokens = plan.disk_tokens
            assert self.request is not None
            self._add(
                Stage.PLANNED,
                reused_tokens=plan.reused,
                disk_tokens=plan.disk_tokens,
                spans=make_strip(self.request.prompt, plan),
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
        self._journal.metrics.add(served)
        self._add(Stage.ENDED, **asdict(served))
        if self.request is not None and self.request.planned is not None:
            self._record(self._queued[0], self.request, served)
            if self._journal.explainer is not None:
                self._journal.explainer.end(served)

    def _record(self, prepared: Prepared, request: Request, served: Served) -> None:
        use = self._use
        assert request.planned is not None
        assert use.t is not None
        self._note(
            generated=Generated(
                tokenizer=prepared.folder.tokenizer_digest,
                ids=tuple(request.answer),
                thinking=prepared.thinking,
            ),
            order=Order(planned=request.planned, stored=tuple(request.stored)),
            told=Told(
                arrived=use.t,
                ended=use.ended,
                stop=use.stop,
                side=use.side,
                running=use.running,
                learned=use.learned,
            ),
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
        self._journal.events.add(self._number, stage, **facts)
