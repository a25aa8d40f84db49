"""Answers requests: prepares them, queues them, and converts items to events.

Takes parsed requests and yields events of the Messages API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from mlxlab.engine import Engine, Executor, Request, Runner, Worker
from mlxlab.errors import ServerError
from mlxlab.models.folder import ModelFolder
from mlxlab.server.aliases import Aliases
from mlxlab.server.event_log import Asker, EventLog
from mlxlab.server.events import AnswerWriter, WireEvent
from mlxlab.server.explainer import Explainer
from mlxlab.server.generation import Completed, Item, Job, request_of
from mlxlab.server.habits import Habits
from mlxlab.server.lanes import Setting
from mlxlab.server.metrics import Metrics
from mlxlab.server.model_pool import EngineKey, Holdings, ModelPool
from mlxlab.server.owners import Owners
from mlxlab.server.prepare import Preparation, Prepared
from mlxlab.server.request_log import Journal, RequestLog
from mlxlab.server.scheduler import QueueFullError, Scheduler
from mlxlab.server.schema import InferenceRequest, TokenCount, TokenCountRequest
from mlxlab.server.side_requests import SideRequests
from mlxlab.traces.recording.script import Script
from mlxlab.traces.schema import Configuration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Service"]

T = TypeVar("T")


class Service:
    """One worker, one queue, and the aliases in force.

    Args:
        aliases: model ids to models and settings.
        worker: the thread that evaluates arrays.
        pool: models in memory.
        queue: most requests that may wait.
        batch: most answers that run at once.
        executor: computes; a new one if None.
        script: see :class:`Preparation`.
        explain: whether to find out why tokens were computed.
        shadow: see :class:`~mlxlab.server.lanes.Lane`.
        habits: what policies learned on earlier servers.

    Attributes:
        holdings: what is stored, counted when the stores change.
        events: what happens to the requests.
        metrics: counts them.
        explainer: finds the causes; None where that is turned off.
    """

    def __init__(
        self,
        aliases: Aliases,
        worker: Worker,
        pool: ModelPool,
        *,
        queue: int = 32,
        batch: int = 8,
        executor: Executor | None = None,
        script: Script | None = None,
        explain: bool = True,
        shadow: Sequence[str] | None = None,
        habits: Habits | None = None,
    ) -> None:
        self.worker = worker
        self.pool = pool
        runner = Runner(batch, pool.release, executor=executor)
        self.scheduler = Scheduler(worker, runner, limit=queue)
        self.metrics = Metrics()
        self.events = EventLog()
        self.explainer = (
            Explainer(self.events, self.metrics, shadow) if explain else None
        )
        self._habits = habits or Habits()
        self._journal = Journal(
            self.events,
            self.metrics,
            Owners(),
            SideRequests(),
            self.explainer,
            self._habits,
        )
        self.preparation = Preparation(aliases, script)
        self._one_at_a_time = CapacityLimiter(1)
        self.holdings = Holdings()
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    @property
    def aliases(self) -> Aliases:
        return self.preparation.aliases

    def check(self) -> None:
        """Check that requests can be answered.

        Raises:
            ServerError: the thread that evaluates arrays has ended.
        """
        if not self.worker.is_alive:
            raise ServerError("the worker has stopped; start another server")

    def load(self) -> None:
        """Load the default model before the first request.

        Raises:
            ModelError: the model is missing, cannot be loaded, or cannot be run under
                its
                strategy.
            ServerError: see :meth:`check`.
        """
        self.check()
        self._load(self.preparation)

    def configure(self, aliases: Aliases) -> None:
        """Answer later requests under other aliases, and drop caches no longer named.

        A new default model is loaded after the earlier requests. This also checks
        whether
        an approximate strategy can serve it.

        Raises:
            ModelError: see :meth:`load`; then nothing changes.
            StrategyError: the strategy, or one of its parameters, means nothing for
                the model; then nothing changes.
            ServerError: see :meth:`check`.
        """
        self.check()
        preparation = Preparation(aliases, self.preparation.script)
        old, new = self.aliases.default, aliases.default
        if old.model != new.model or not new.spec.exact:
            self._load(preparation)
        elif old.strategy != new.strategy:
            self.pool.spec(preparation.folder, new.strategy)
        self.preparation = preparation
        wanted = {(alias.model, alias.strategy) for alias in aliases.values()}
        self.worker.submit(self._keep_only, wanted)

    async def count(
        self, request: TokenCountRequest, credential: str = ""
    ) -> TokenCount:
        """Count the prompt tokens of a request as it would be rendered.

        Args:
            request: the parsed request.
            credential: of the client.

        Raises:
            MlxlabError: see :meth:`Preparation.render`.
        """
        prepared = await self._prepared(request, credential, self.preparation)
        tokens, edits = len(prepared.prompt), prepared.edits
        if edits is None:
            return TokenCount(input_tokens=tokens)
        original = tokens + sum(edit.input_tokens for edit in edits)
        return TokenCount(
            input_tokens=tokens,
            context_management={"original_input_tokens": original},
        )

    async def answer(
        self,
        request: InferenceRequest,
        credential: str,
        note: Callable[..., object] = lambda **facts: None,
        asker: Asker | None = None,
    ) -> AsyncIterator[WireEvent | None]:
        """Yield events as they come, and None as a heartbeat.

        Closing the iterator stops the work; computed tokens stay cached.

        Args:
            request: the parsed request.
            credential: the caches of this credential may be used.
            note: called with further facts for a recording: ``configuration`` before
                the first events, ``generated``, ``order``, ``told`` and ``timing``
                before the last, or when the iterator has been closed.
            asker: who sends it, if it is known.

        Raises:
            MlxlabError: see the methods of :class:`Preparation`.
            QueueFullError: too many requests wait.
        """
        self.check()
        preparation = self.preparation
        # Reject unknown models before reporting a full queue.
        preparation.aliases.resolve(request.model)
        self._check_queue()  # before the work of rendering
        own = RequestLog(self._journal, asker or Asker(), request, note)
        try:
            prepared = await self._prepared(request, credential, preparation)
            alias = prepared.alias
            strategy = self.pool.spec(prepared.folder, alias.strategy)
            note(configuration=Configuration(strategy=strategy, rules=alias.rules))
            engines = partial(self._engine, credential)
            job = await self._alone(
                partial(preparation.job, request, prepared, engines)
            )
            self._check_queue()  # other requests may have come first
            writer = _writer(request, prepared, preparation)
            folder, rules, chunk = prepared.folder, alias.rules, self.pool.chunk
            setting = Setting(folder, strategy, rules, credential, chunk)
            own.queue(prepared, writer, setting, full=self.scheduler.is_full)
            stream = self.scheduler.stream(partial(self._request, job, own))
            async with aclosing(stream) as items:  # type: ignore[type-var]
                async for item in items:
                    if item is not None:
                        own.take(item)
                        events = list(writer.write(item))
                        if isinstance(item, Completed):
                            # Who has got a whole answer may rely on these records.
                            own.conclude()
                        for event in events:
                            yield event
                    # A prefill and hidden thinking are items without events.
                    yield None
        except Exception:
            own.outcome = "error"
            raise
        finally:
            own.conclude()

    def tokenizer(self, digest: str) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of a served model by its digest, if it is known."""
        return self._tokenizers.get(digest)

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        waiting = self.scheduler.waiting
        running = self.scheduler.unfinished - waiting
        memory = self.pool.memory
        held = {"budget": memory.budget, "peak": memory.peak}
        return self.metrics.text(
            running, waiting, held, self.holdings, self.pool.batched
        )

    def close(self) -> None:
        """End what follows the requests, and keep what was learned from them."""
        self._habits.close()
        if self.explainer is not None:
            self.explainer.close()

    async def _prepared(
        self, request: TokenCountRequest, credential: str, preparation: Preparation
    ) -> Prepared:
        prepared = await self._alone(partial(preparation.render, request, credential))
        folder = prepared.folder
        self._tokenizers.setdefault(folder.tokenizer_digest, folder.tokenizer)
        return prepared

    async def _alone(self, call: partial[T]) -> T:
        """Run calls off the event loop, singly: see :mod:`mlxlab.server.prepare`."""
        return await run_sync(call, limiter=self._one_at_a_time)

    def _check_queue(self) -> None:
        try:
            self.scheduler.check()
        except QueueFullError:
            self.metrics.refuse()
            raise

    def _request(
        self, job: Job, own: RequestLog, put: Callable[[Item], object]
    ) -> Request:
        request = request_of(job, put)
        own.follow(request)
        done = request.done

        def count_stored() -> None:
            # Counted when the stores change, read from any thread.
            self.holdings = self.pool.holdings
            done()

        request.done = count_stored
        return request

    def _load(self, preparation: Preparation) -> None:
        strategy = preparation.aliases.default.strategy
        loaded = self.worker.submit(self.pool.load, preparation.folder, strategy)
        preparation.load(self.pool.credential)  # meanwhile
        loaded.result()

    def _keep_only(self, wanted: Collection[tuple[str, str]]) -> None:
        self.pool.keep_only(wanted)
        self.holdings = self.pool.holdings

    def _engine(self, credential: str, folder: ModelFolder, strategy: str) -> Engine:
        return self.pool.engine(folder, EngineKey(strategy, credential))


def _writer(
    request: InferenceRequest, prepared: Prepared, preparation: Preparation
) -> AnswerWriter:
    thinking = request.thinking
    return AnswerWriter(
        request.model,
        sign=partial(preparation.sign, prepared),
        show_thinking=not (thinking and thinking.display == "omitted"),
        edits=prepared.edits,
    )
