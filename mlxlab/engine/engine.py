"""Model + store + strategy: ids in, ids out. Knows nothing of text protocols.

Everything here evaluates arrays and belongs on the worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_model as load_mlx_model

from mlxlab.engine.kv_store import KVStore
from mlxlab.engine.recompute import select
from mlxlab.engine.rope import Positions, Rotary
from mlxlab.engine.scattered_prefill import Patch
from mlxlab.errors import IntegrityError, ModelError
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies import Commit, Plan, Strategy

__all__ = [
    "Engine",
    "LogitsProcessor",
    "Prefill",
    "PrefillProgress",
    "Replayed",
    "Sampler",
    "device_name",
    "load_model",
]

Sampler: TypeAlias = Callable[[mx.array], mx.array]
"""Log probabilities ``[1, vocabulary]`` to an id ``[1]``."""

LogitsProcessor: TypeAlias = Callable[[mx.array, mx.array], mx.array]
"""Ids so far and logits ``[1, vocabulary]`` to logits."""

#: Smaller chunks leave the device idle between them.
_LEAST_CHUNK = 64


def load_model(folder: ModelFolder) -> Any:
    """The model with its weights in memory. Never runs code of the folder's own.

    Raises:
        ModelError: weights missing or broken, an architecture that mlx-lm does not
            know, or one that keeps more state than keys and values of all positions.
    """
    try:
        model, _ = load_mlx_model(folder.path)
    except Exception as error:
        # A broken config.json makes mlx-lm raise whatever it runs into.
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"model {folder.name}: cannot be loaded: {why}") from error
    kinds = {type(cache).__name__ for cache in make_prompt_cache(model)}
    if kinds != {KVCache.__name__}:
        raise ModelError(
            f"model {folder.name}: keeps {', '.join(sorted(kinds))}; mlxlab restores "
            "plain KVCache layers only, which can be cut at any token"
        )
    return model


def _unmoved(layer: int, keys: mx.array, shift: int) -> mx.array:
    return keys


def device_name() -> str:
    """What computes: a chip's or processor's name."""
    return str(mx.device_info()["device_name"])


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Prompt tokens just restored or computed."""

    tokens: int


@dataclass(slots=True)
class Prefill:
    """A prompt on its way into a working cache; all but its last token go there.

    Attributes:
        cache: one KVCache a layer.
        restore_s: seconds to plan and to copy the reused positions, so far.
        compute_s: seconds to compute the rest, so far.
    """

    prompt: Prompt
    plan: Plan
    cache: list[KVCache] = field(repr=False)
    restore_s: float
    compute_s: float = 0.0

    @property
    def position(self) -> int:
        """Tokens taken in so far, without a hole."""
        return int(self.cache[0].offset)

    def advance(self, position: int) -> None:
        """Say that the cache holds all positions before this one."""
        for layer in self.cache:
            layer.offset = position


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one forced exchange cost.

    Attributes:
        logits: float32, shape ``[scored, vocabulary]``; row i is what was predicted in
            place of the answer's token i.
        greedy: ids that the model would have answered itself.
        restore_s: see Prefill.
        prefill_s: seconds to compute what was not restored, the last token included.
        ttft_s: seconds from the prompt's arrival to the first token's logits.
    """

    plan: Plan
    commit: Commit
    logits: np.ndarray[Any, np.dtype[np.float32]]
    greedy: tuple[int, ...]
    restore_s: float
    prefill_s: float
    ttft_s: float


@dataclass(slots=True)
class _Pace:
    """Cuts work into chunks, smaller ones once they take too long."""

    chunk: int
    most_s: float

    def pieces(self, positions: Positions) -> Iterator[Positions]:
        start = 0
        while start < len(positions):
            piece = positions[start : start + self.chunk]
            yield piece
            start += len(piece)

    def record(self, taken_s: float) -> float:
        """Take in how long a piece took, and pass it on."""
        if taken_s > self.most_s:
            self.chunk = max(self.chunk // 2, _LEAST_CHUNK)
        return taken_s


class Engine:
    """Prefills and decodes under one strategy.

    Args:
        model: from :func:`load_model`.
        strategy: fresh; its books and this engine's store go together.
        chunk: tokens computed at a time, mlx-lm's ``prefill_step_size``.
        window: longest sequence that the model takes.
        chunk_s: seconds after which whoever waits wants to hear something, or to
            cancel. A chunk that takes longer makes the next one half as large.

    Raises:
        ModelError: the strategy moves keys and values, and those of this model cannot
            be moved.
    """

    def __init__(
        self,
        model: Any,
        strategy: Strategy,
        *,
        chunk: int = 2048,
        window: int = 2**31,
        chunk_s: float = float("inf"),
    ) -> None:
        self._rotary = None if strategy.exact else Rotary(model)
        self.model = model
        self.strategy = strategy
        self.store = KVStore()
        self.chunk = chunk
        self.window = window
        self.chunk_s = chunk_s

    def prefill(
        self, prompt: Prompt, progress: Callable[[int], object] | None = None
    ) -> Prefill:
        """Restore what the strategy reuses and compute the gaps, in order.

        Args:
            prompt: what to take in; its last token is left for the first decode step.
            progress: called with the number of tokens just restored or computed.

        Raises:
            ModelError: the prompt is longer than the model's window.
        """
        prefill = self._begin(prompt)
        for taken in self._take_in(prefill):
            if progress:
                progress(taken.tokens)
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
    ) -> Replayed:
        """Prefill, then take in a recorded answer instead of sampling one.

        Args:
            prompt: the rendered request.
            answer: ids that follow it, the end of turn included; may be empty.
            progress: see :meth:`prefill`.
            score: how many of the answer's tokens to give logits for, 1 at least.
            greedy: most tokens to decode greedily from the same prefill.
            stop: ids that end the greedy answer; the one that does belongs to it.
        """
        prefill = self.prefill(prompt, progress)
        begun = perf_counter()
        rows = [self._feed(prompt.tokens[-1:], prefill.cache)[0].astype(mx.float32)]
        mx.eval(rows)
        last_s = perf_counter() - begun
        if progress:
            progress(1)
        own = tuple(self._greedy(prefill, greedy, stop))
        for start in range(0, len(answer) - 1, self.chunk):
            fed = answer[start : min(start + self.chunk, len(answer) - 1)]
            logits = self._feed(fed, prefill.cache)
            rows.append(logits[0, : max(score - 1 - start, 0)].astype(mx.float32))
        return Replayed(
            plan=prefill.plan,
            commit=self._commit(prefill, answer),
            logits=np.array(mx.concatenate(rows)),
            greedy=own,
            restore_s=prefill.restore_s,
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

        What was computed is cached at the end, also when the iterator is closed
        before: in the middle of the prefill, or of the answer.

        Args:
            prompt: the rendered request.
            max_tokens: most tokens to yield; none fill the cache only.
            sampler: as ``mlx_lm.sample_utils`` makes them; greedy if None.
            processors: applied to the logits before the sampler, in order.
            stop: ids that end the answer. The one that does is yielded.

        Yields:
            The plan, what is taken in of the prompt as it happens, then token ids.

        Raises:
            ModelError: the prompt is longer than the model's window.
        """
        prefill = self._begin(prompt)
        answer: list[int] = []
        try:
            yield prefill.plan
            yield from self._take_in(prefill)
            if max_tokens > 0:
                for token in self._decode(prefill, max_tokens, sampler, processors):
                    answer.append(token)
                    yield token
                    if token in stop:
                        break
        except GeneratorExit:
            self._commit(prefill, answer)
            raise
        self._commit(prefill, answer)

    def _begin(self, prompt: Prompt) -> Prefill:
        if len(prompt) > self.window:
            raise ModelError(
                f"prompt is too long: {len(prompt)} tokens > {self.window} maximum"
            )
        started = perf_counter()
        plan = self.strategy.plan(prompt)
        cache = make_prompt_cache(self.model)
        return Prefill(prompt, plan, cache, perf_counter() - started)

    def _take_in(self, prefill: Prefill) -> Iterator[PrefillProgress]:
        plan = prefill.plan
        moved = next((span.target for span in plan.spans if span.moved), plan.length)
        yield from self._append(prefill, plan.head(moved))
        if moved < plan.length:
            yield from self._patch(prefill)

    def _append(self, prefill: Prefill, plan: Plan) -> Iterator[PrefillProgress]:
        """Take in a plan in which nothing is moved, one piece behind the other."""
        last = len(prefill.prompt) - 1
        pace = _Pace(self.chunk, self.chunk_s)
        for start, stop in [*plan.gaps, (plan.length, plan.length)]:
            run = [s for s in plan.spans if prefill.position <= s.target < start]
            if run:
                begun = perf_counter()
                self.store.restore(run, prefill.cache)
                prefill.restore_s += perf_counter() - begun
                yield PrefillProgress(sum(span.length for span in run))
            for piece in pace.pieces(np.arange(start, min(stop, last))):
                begun = perf_counter()
                self._feed(prefill.prompt.tokens[piece], prefill.cache)
                prefill.compute_s += pace.record(perf_counter() - begun)
                yield PrefillProgress(len(piece))

    def _patch(self, prefill: Prefill) -> Iterator[PrefillProgress]:
        """Put all that is left to restore in its place and compute in between."""
        plan, cache = prefill.plan, prefill.cache
        if (rotary := self._rotary) is None:
            raise IntegrityError(f"{self.strategy.name}: exact, and yet moves spans")
        begun = perf_counter()
        spans = [span for span in plan.spans if span.target >= prefill.position]
        move = rotary.move if plan.rotate else _unmoved
        self.store.scatter(spans, cache, plan.length, move)
        prefill.restore_s += perf_counter() - begun
        begun = perf_counter()
        patch = Patch.of(plan, prefill.prompt.tokens, cache, rotary)
        open_ = ~patch.filled
        if plan.recompute:
            open_[select(patch, plan.selection, plan.recompute, self.chunk)] = True
        prefill.compute_s += perf_counter() - begun
        yield PrefillProgress(sum(span.length for span in spans) - plan.recompute)
        positions = np.flatnonzero(open_[:-1])
        pace = _Pace(self.chunk, self.chunk_s)
        for piece in pace.pieces(positions):
            prefill.advance(int(piece[0]))
            begun = perf_counter()
            patch.compute(piece)
            prefill.compute_s += pace.record(perf_counter() - begun)
            yield PrefillProgress(len(piece))
        prefill.advance(plan.length - 1)

    def _greedy(
        self, prefill: Prefill, most: int, stop: Container[int]
    ) -> Iterator[int]:
        """Decode behind a prompt that is in the cache; leaves the cache as it was."""
        length = prefill.position
        if most:
            prefill.advance(length - 1)
            for token in self._decode(prefill, most, None, ()):
                yield token
                if token in stop:
                    break
            prefill.advance(length)

    def _decode(
        self,
        prefill: Prefill,
        max_tokens: int,
        sampler: Sampler | None,
        processors: Sequence[LogitsProcessor],
    ) -> Iterator[int]:
        steps = generate_step(
            mx.array(prefill.prompt.tokens[-1:]),
            self.model,
            max_tokens=max_tokens,
            sampler=sampler,
            logits_processors=list(processors),
            prompt_cache=prefill.cache,
            prefill_step_size=self.chunk,
        )
        try:
            for token, _ in steps:
                yield int(token)
        finally:
            steps.close()

    def _commit(self, prefill: Prefill, answer: Sequence[int] | Tokens) -> Commit:
        """Cache what was fed to the model: all but the answer's last token."""
        ids = np.asarray(answer, dtype=np.int32)
        sequence = prefill.prompt.extended(ids)
        # An abandoned prefill has got less far.
        length = min(prefill.position, len(sequence) - 1)
        if length == 0:
            return Commit()
        commit = self.strategy.commit(sequence.head(length), prefill.plan.head(length))
        self.store.apply(commit, prefill.cache)
        return commit

    def _feed(self, tokens: Tokens, cache: Sequence[KVCache]) -> mx.array:
        """Compute tokens at the cache's end.

        Returns:
            Logits, not evaluated: most calls are made for the cache alone.
        """
        logits: mx.array = self.model(mx.array(tokens)[None], cache=cache)
        mx.eval([layer.state for layer in cache])
        mx.clear_cache()
        return logits
