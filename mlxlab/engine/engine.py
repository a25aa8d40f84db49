"""The engine: a model, its KV store and a strategy. Token ids in, token ids out.

Everything here evaluates arrays and must run on the worker thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache

from mlxlab.engine.batch import Batch
from mlxlab.engine.disk_store import DiskStore
from mlxlab.engine.kv_store import Held, KVStore, Packed
from mlxlab.engine.memory import Memory
from mlxlab.engine.recompute import select
from mlxlab.engine.rope import Positions, Rope
from mlxlab.engine.runner import Request, Runner
from mlxlab.engine.samplers import LogitsProcessor, Sampler, greedy
from mlxlab.engine.scattered_prefill import ScatteredPrefill
from mlxlab.engine.working_cache import Checkpoint, WorkingCache
from mlxlab.errors import DiskError, IntegrityError, ModelError
from mlxlab.models.layout import Windows
from mlxlab.pace import CHUNK_TOKENS
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies import Commit, Plan, Strategy
from mlxlab.strategies.use import UNKNOWN, Use

__all__ = [
    "Engine",
    "Prefill",
    "PrefillProgress",
    "Replayed",
    "device_name",
]

log = logging.getLogger(__name__)

T = TypeVar("T")


def _unmoved(layer: int, keys: mx.array, shift: int) -> mx.array:
    return keys


def device_name() -> str:
    """Return the name of the chip or processor that computes."""
    return str(mx.device_info()["device_name"])


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """The number of prompt tokens that were just restored or computed."""

    tokens: int


@dataclass(slots=True)
class Prefill:
    """A prompt while its cache is being filled, up to all tokens but the last.

    Attributes:
        caches: the caches of all layers.
        held: what the plan restores.
        restore_s: seconds spent so far on the plan and on copying reused positions.
        compute_s: seconds spent so far on computing the other positions.
        taken: checkpoints taken so far, by position.
        packed: what was restored from fewer bits, and is stored again as it was.
        given: tokens of the next chunk; None where the engine decides.
        end: tokens to fill; all but the last if None.
    """

    prompt: Prompt
    plan: Plan
    caches: WorkingCache = field(repr=False)
    held: Held = field(repr=False)
    restore_s: float
    compute_s: float = 0.0
    taken: dict[int, Checkpoint] = field(default_factory=dict, repr=False)
    packed: Packed = field(default=(), repr=False)
    given: int | None = None
    end: int | None = None

    @property
    def position(self) -> int:
        """Number of tokens in the caches, without a gap."""
        return self.caches.position

    @property
    def layers(self) -> list[KVCache]:
        """The caches of a model that keeps plain keys and values only."""
        return self.caches.layers

    def computed(self, answer: int) -> int:
        """Count the tokens of prompt and answer that were fed to the model.

        The last token of an answer never is. An abandoned prefill has filled fewer.

        Args:
            answer: tokens of the answer.
        """
        return min(self.position, len(self.prompt) + answer - 1)

    def advance(self, position: int) -> None:
        """Mark all positions before this one as filled, in plain caches."""
        for layer in self.layers:
            layer.offset = position
        self.caches.position = position


@dataclass(frozen=True, slots=True)
class Replayed:
    """The cost and the logits of one replayed exchange.

    Attributes:
        logits: float32, shape ``[scored, vocabulary]``. Row i holds the prediction at
            the answer's token i.
        greedy: ids of the model's own greedy answer.
        prefill: of the prompt; its caches hold the answer too.
        commit: empty if it was left to the caller.
        prefill_s: seconds to compute the tokens that were not restored, the last one
            included.
        ttft_s: seconds from the prompt's arrival to the first token's logits.
    """

    prefill: Prefill
    commit: Commit
    logits: np.ndarray[Any, np.dtype[np.float32]]
    greedy: tuple[int, ...]
    prefill_s: float
    ttft_s: float

    @property
    def plan(self) -> Plan:
        return self.prefill.plan


class Engine:
    """Prefills and decodes under one strategy.

    Args:
        model: from :func:`load_model`.
        strategy: a fresh one; its state describes this engine's store.
        chunk: tokens computed at a time, mlx-lm's ``prefill_step_size``.
        window: longest sequence of the model, in tokens.
        chunk_s: seconds that a chunk may take, so that callers see progress and can
            cancel. A slower chunk halves the size of the next.
        batched: whether answers of this model may decode together.
        memory: the budget that all engines share; None for no limit.
        disk: holds what the strategy's ``tier`` decides about; None without a disk.

    Attributes:
        commits: number of commits so far.
        users: requests that wait or run.

    Raises:
        ModelError: the strategy moves keys and values, and this model's keys and
            values cannot be moved.
    """

    def __init__(
        self,
        model: Any,
        strategy: Strategy,
        *,
        chunk: int = 2048,
        window: int = 2**31,
        chunk_s: float = float("inf"),
        batched: bool = True,
        memory: Memory | None = None,
        disk: DiskStore | None = None,
    ) -> None:
        if (disk and disk.disk) is not strategy.tier:
            raise IntegrityError(f"{strategy.name}: another disk than the engine's")
        self._rope = None if strategy.exact else Rope(model)
        self.model = model
        self.strategy = strategy
        self.store = KVStore(strategy.bits)
        self.chunk = chunk
        self.window = window
        self.chunk_s = chunk_s
        self.batched = batched
        self.memory = memory
        self.disk = disk
        self.commits = 0
        self.users = 0
        self._in_time = float("inf")  # tokens that chunk_s was enough for, at last

    def prefill(
        self,
        prompt: Prompt,
        progress: Callable[[int], object] | None = None,
        *,
        end: int | None = None,
    ) -> Prefill:
        """Restore the tokens that the strategy reuses and compute the gaps, in order.

        Args:
            prompt: the rendered request. Its last token is left for the first decode
                step.
            progress: called with the number of tokens just restored or computed.
            end: tokens to fill, where the client left before the last one.

        Raises:
            ModelError: the prompt is longer than the model's window.
        """
        prefill = self.begin(prompt)
        prefill.end = end
        for done in self.fill(prefill):
            if progress:
                progress(done.tokens)
        return prefill

    def replay(
        self,
        prompt: Prompt,
        answer: Tokens,
        progress: Callable[[int], object] | None = None,
        *,
        score: int = 1,
        greedy: int = 0,
        stop: Container[int] = frozenset(),
        commit: bool = True,
    ) -> Replayed:
        """Prefill, then feed a recorded answer instead of sampling one.

        Args:
            prompt: the rendered request.
            answer: ids of the recorded answer, its end of turn included; may be empty.
            progress: see :meth:`prefill`.
            score: number of the answer's tokens to return logits for, at least 1.
            greedy: most tokens to decode greedily from this prefill.
            stop: ids that end the greedy answer. The last id is part of the answer.
            commit: whether to cache the tokens; see :meth:`commit`.
        """
        prefill = self.prefill(prompt, progress)
        started = perf_counter()
        caches = prefill.caches
        before = caches.mark() if greedy else None
        logits = caches.compute(self.model, prompt.tokens[-1:])
        rows = [logits[0].astype(mx.float32)]
        mx.eval(rows)
        last_s = perf_counter() - started
        if progress:
            progress(1)
        own: tuple[int, ...] = ()
        if before is not None:
            behind = caches.mark()
            caches.rewind(before)
            own = tuple(self._greedy(prefill, greedy, stop))
            caches.rewind(behind)
        for start in range(0, len(answer) - 1, self.chunk):
            fed = answer[start : min(start + self.chunk, len(answer) - 1)]
            logits = caches.compute(self.model, fed)
            rows.append(logits[0, : max(score - 1 - start, 0)].astype(mx.float32))
        return Replayed(
            prefill=prefill,
            commit=self.commit(prefill, answer) if commit else Commit(),
            logits=np.array(mx.concatenate(rows)),
            greedy=own,
            prefill_s=prefill.compute_s + last_s,
            ttft_s=prefill.restore_s + prefill.compute_s + last_s,
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        sampler: Sampler | None = None,
        processors: Sequence[LogitsProcessor] = (),
        stop: Container[int] = frozenset(),
    ) -> Generator[Plan | PrefillProgress | int, None, None]:
        """Prefill, then decode token by token.

        The computed tokens are cached at the end. They are cached too when the iterator
        is closed early, during the prefill or during the answer.

        Args:
            prompt: the rendered request.
            max_tokens: most tokens to yield; 0 only fills the cache.
            sampler: a sampler as in ``mlx_lm.sample_utils``; greedy if None.
            processors: applied to the logits before the sampler, in order.
            stop: ids that end the answer. The stop id is yielded too.

        Yields:
            The plan, the progress of the prefill, then token ids.

        Raises:
            ModelError: the prompt is longer than the model's window.
        """
        items: deque[Plan | PrefillProgress | int] = deque()
        request = Request(
            self, prompt, max_tokens, sampler or greedy, processors, stop, items.append
        )
        runner = Runner()
        runner.add(request)
        try:
            while runner.step():
                yield from _taken(items)
            if request.error is not None:
                raise request.error
            yield from _taken(items)
        finally:
            runner.cancel(request)

    def begin(self, prompt: Prompt) -> Prefill:
        """Plan a prompt, and hold what the plan restores.

        Raises:
            ModelError: the prompt is longer than the model's window.
        """
        if len(prompt) > self.window:
            raise ModelError(
                f"prompt is too long: {len(prompt)} tokens > {self.window} maximum"
            )
        started = perf_counter()
        plan, held, checkpoint = self._hold(prompt)
        caches = WorkingCache.of(self.model, Windows(self.strategy.windows))
        prefill = Prefill(prompt, plan, caches, held, perf_counter() - started)
        if checkpoint is not None:
            prefill.taken[plan.prefix_length] = checkpoint
        return prefill

    def _hold(self, prompt: Prompt) -> tuple[Plan, Held, Checkpoint | None]:
        """Plan a prompt; return what it restores, and a checkpoint from disk.

        What cannot be read from disk is planned without.
        """
        if self.disk is not None:
            self.disk.settle()
        while True:
            plan = self.strategy.plan(prompt)
            if self.disk is None:
                return plan, self.store.hold(plan), None
            try:
                loaded, checkpoint = self.disk.load(plan)
            except DiskError as error:
                log.warning("%s; it is computed again", error)
                continue
            return plan, self.store.hold(plan, loaded, checkpoint), checkpoint

    def fill(self, prefill: Prefill) -> Iterator[PrefillProgress]:
        """Restore and compute all tokens but the last, one chunk an item."""
        plan = prefill.plan
        moved = next((span.target for span in plan.spans if span.moved), plan.length)
        yield from self._append(prefill, plan.head(moved))
        if moved < plan.length:
            yield from self._prefill_scattered(prefill)
        if not self.strategy.bits.is_full:
            prefill.packed = prefill.held.packed(plan.spans)
        prefill.held = Held()  # what is dropped from the store is free from now on

    def _append(self, prefill: Prefill, plan: Plan) -> Iterator[PrefillProgress]:
        """Restore and compute a plan without moved spans, from left to right."""
        last = len(prefill.prompt) - 1 if prefill.end is None else prefill.end
        for start, stop in [*plan.gaps, (plan.length, plan.length)]:
            run = [s for s in plan.spans if prefill.position <= s.target < start]
            if run:
                started = perf_counter()
                prefill.held.restore(run, prefill.caches, plan.resume)
                prefill.restore_s += perf_counter() - started
                yield PrefillProgress(sum(span.length for span in run))
            to_compute = np.arange(start, min(stop, last))
            for piece in self._pieces(to_compute, prefill, plan.captures):
                with self._measured(prefill, piece):
                    prefill.caches.compute(self.model, prefill.prompt.tokens[piece])
                    if prefill.position in plan.captures:
                        checkpoint = prefill.caches.checkpoint(prefill.position)
                        prefill.taken[prefill.position] = checkpoint
                yield PrefillProgress(len(piece))

    def _prefill_scattered(self, prefill: Prefill) -> Iterator[PrefillProgress]:
        """Put the remaining spans in place and compute the positions between them."""
        plan, cache = prefill.plan, prefill.layers
        if (rope := self._rope) is None:
            raise IntegrityError(f"{self.strategy.name}: exact, but moves spans")
        started = perf_counter()
        spans = [span for span in plan.spans if span.target >= prefill.position]
        move = rope.move if plan.rotate else _unmoved
        prefill.held.scatter(spans, cache, plan.length, move)
        prefill.restore_s += perf_counter() - started
        started = perf_counter()
        scattered = ScatteredPrefill.of(plan, prefill.prompt.tokens, cache, rope)
        open_ = ~scattered.filled
        if plan.recompute:
            open_[select(scattered, plan.selection, plan.recompute, self.chunk)] = True
        prefill.compute_s += perf_counter() - started
        yield PrefillProgress(sum(span.length for span in spans) - plan.recompute)
        positions = np.flatnonzero(open_[:-1])
        for piece in self._pieces(positions, prefill):
            prefill.advance(int(piece[0]))
            with self._measured(prefill, piece):
                scattered.compute(piece)
            yield PrefillProgress(len(piece))
        prefill.advance(plan.length - 1)

    def next_chunk(self, position: int) -> int:
        """Return how many tokens may be computed at once, behind a position."""
        most = self.chunk
        if self._in_time < most:
            least = min(most, CHUNK_TOKENS)
            most = max(int(self._in_time) // least * least, least)
        if self.memory is None:
            return most
        growth = self.strategy.computed_bytes
        return self.memory.chunk(self.model, most, position, growth)

    def _pieces(
        self, positions: Positions, prefill: Prefill, stops: Sequence[int] = ()
    ) -> Iterator[Positions]:
        """Yield neighbours, in chunks that end at ``stops`` too."""
        start = 0
        while start < len(positions):
            chunk = prefill.given or self.next_chunk(int(positions[start]))
            piece = positions[start : start + chunk]
            first, last = int(piece[0]), int(piece[-1])
            stop = next((stop for stop in stops if first < stop <= last), None)
            if stop is not None:
                piece = piece[: stop - first]
            yield piece
            start += len(piece)

    @contextmanager
    def _measured(self, prefill: Prefill, piece: Positions) -> Iterator[None]:
        """Measure the computation of a chunk, which sizes the next one."""
        if self.memory is not None:
            self.memory.begin()
        started = perf_counter()
        yield
        taken_s = perf_counter() - started
        prefill.compute_s += taken_s
        if len(piece) >= min(self.chunk, CHUNK_TOKENS):
            self._in_time = len(piece) * self.chunk_s / max(taken_s, 1e-9)
        if self.memory is not None:
            self.memory.record(self.model, len(piece), int(piece[-1]) + 1)

    def _greedy(
        self, prefill: Prefill, most: int, stop: Container[int]
    ) -> Iterator[int]:
        """Decode after a prefilled prompt."""
        batch = Batch(self.model)
        number = batch.add(prefill.caches, int(prefill.prompt.tokens[-1]), greedy)
        for _ in range(most):
            token = batch.step()[number]
            if isinstance(token, Exception):
                raise token
            yield token
            if token in stop:
                break
        batch.remove(number)

    def commit(
        self,
        prefill: Prefill,
        answer: Sequence[int] | Tokens = (),
        *,
        length: int | None = None,
        caches: WorkingCache | None = None,
        use: Use = UNKNOWN,
    ) -> Commit:
        """Cache tokens that were fed to the model.

        Args:
            prefill: of the prompt.
            answer: ids of the answer so far; the last has not been fed.
            length: leading tokens to cache, where the answer goes on; see
                :meth:`~mlxlab.strategies.base.Strategy.count_shared`. All if None.
            caches: that hold them; the prefill's if None.
            use: the request, for the eviction policy.
        """
        ids = np.asarray(answer, dtype=np.int32)
        if length is None:
            length = prefill.computed(len(ids))
        if length == 0:
            return Commit()
        sequence = prefill.prompt.extended(ids).head(length)
        commit = self.strategy.commit(sequence, prefill.plan.head(length), use)
        filled = caches or prefill.caches
        self.store.apply(commit, filled, prefill.taken, prefill.packed)
        if self.disk is not None:
            self.disk.apply(commit.disk, caches or prefill.caches, prefill.taken)
        self.commits += 1
        return commit


def _taken(items: deque[T]) -> Iterator[T]:
    while items:
        yield items.popleft()
