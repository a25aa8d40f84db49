"""Model + store + strategy: ids in, ids out. Knows nothing of text protocols.

Everything here evaluates arrays and belongs on the worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_model as load_mlx_model

from mlxlab.engine.store import KVStore
from mlxlab.errors import ModelError
from mlxlab.models import ModelFolder
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies import Commit, Plan, Strategy

__all__ = ["Engine", "Prefill", "Replayed", "device_name", "load_model"]

Sampler: TypeAlias = Callable[[mx.array], mx.array]


def load_model(folder: ModelFolder) -> Any:
    """The model with its weights in memory. Never runs code of the folder's own.

    Raises:
        ModelError: weights missing or broken, an architecture that mlx-lm does not
            know, or one that keeps more state than keys and values of all positions.
    """
    try:
        model, _ = load_mlx_model(folder.path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"model {folder.name}: cannot be loaded: {error}") from error
    kinds = {type(cache).__name__ for cache in make_prompt_cache(model)}
    if kinds != {KVCache.__name__}:
        raise ModelError(
            f"model {folder.name}: keeps {', '.join(sorted(kinds))}; mlxlab restores "
            "plain KVCache layers only, which can be cut at any token"
        )
    return model


def device_name() -> str:
    """What computes: a chip's or processor's name."""
    return str(mx.device_info()["device_name"])


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt in the working cache, all but its last token.

    Attributes:
        cache: one KVCache a layer, at offset ``len(prompt) - 1``.
        restore_s: seconds to plan and to copy the reused positions.
        compute_s: seconds to compute the rest.
    """

    plan: Plan
    cache: list[KVCache]
    restore_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one forced exchange cost.

    Attributes:
        logits: float32 of the answer's first token, shape ``[vocabulary]``.
        restore_s: see Prefill.
        prefill_s: seconds to compute what was not restored, the last token included.
        ttft_s: seconds from the prompt's arrival to the first token's logits.
    """

    plan: Plan
    commit: Commit
    logits: np.ndarray[Any, np.dtype[np.float32]]
    restore_s: float
    prefill_s: float
    ttft_s: float


class Engine:
    """Prefills and decodes under one strategy.

    Args:
        model: from :func:`load_model`.
        strategy: fresh; its books and this engine's store go together.
        chunk: tokens computed at a time, mlx-lm's ``prefill_step_size``.
        window: longest sequence that the model takes.
    """

    def __init__(
        self, model: Any, strategy: Strategy, *, chunk: int = 2048, window: int = 2**31
    ) -> None:
        self.model = model
        self.strategy = strategy
        self.store = KVStore()
        self.chunk = chunk
        self.window = window

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
        if len(prompt) > self.window:
            raise ModelError(
                f"prompt is too long: {len(prompt)} tokens > {self.window} maximum"
            )
        done = progress or (lambda tokens: None)
        started = perf_counter()
        plan = self.strategy.plan(prompt)
        cache = make_prompt_cache(self.model)
        restore_s = perf_counter() - started
        compute_s = 0.0
        position = 0
        for start, stop in plan.gaps:
            begun = perf_counter()
            run = [span for span in plan.spans if position <= span.target < start]
            if run:
                self.store.restore(run, cache)
                done(start - position)
            computing = perf_counter()
            restore_s += computing - begun
            last = min(stop, len(prompt) - 1)
            for at in range(start, last, self.chunk):
                tokens = prompt.tokens[at : min(at + self.chunk, last)]
                self._feed(tokens, cache)
                done(len(tokens))
            compute_s += perf_counter() - computing
            position = stop
        return Prefill(plan, cache, restore_s, compute_s)

    def replay(
        self,
        prompt: Prompt,
        answer: Tokens,
        progress: Callable[[int], object] | None = None,
    ) -> Replayed:
        """Prefill, then take in a recorded answer instead of sampling one.

        Args:
            prompt: the rendered request.
            answer: ids that follow it, the end of turn included; may be empty.
            progress: see :meth:`prefill`.
        """
        prefill = self.prefill(prompt, progress)
        begun = perf_counter()
        logits = self._feed(prompt.tokens[-1:], prefill.cache)[0, -1]
        mx.eval(logits)
        last_s = perf_counter() - begun
        if progress:
            progress(1)
        for start in range(0, len(answer) - 1, self.chunk):
            stop = min(start + self.chunk, len(answer) - 1)
            self._feed(answer[start:stop], prefill.cache)
        return Replayed(
            plan=prefill.plan,
            commit=self._commit(prompt, answer, prefill),
            logits=np.array(logits.astype(mx.float32)),
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
        stop: Container[int] = frozenset(),
    ) -> Iterator[int]:
        """Prefill, then decode token by token; what was computed is cached at the end.

        Args:
            prompt: the rendered request.
            max_tokens: most tokens to yield.
            sampler: log probabilities to an id, as ``mlx_lm.sample_utils`` makes them;
                greedy if None.
            stop: ids that end the answer. The one that does is yielded.

        Yields:
            Token ids.
        """
        prefill = self.prefill(prompt)
        answer: list[int] = []
        steps = generate_step(
            mx.array(prompt.tokens[-1:]),
            self.model,
            max_tokens=max_tokens,
            sampler=sampler,
            prompt_cache=prefill.cache,
            prefill_step_size=self.chunk,
        )
        try:
            for token, _ in steps:
                answer.append(int(token))
                yield answer[-1]
                if answer[-1] in stop:
                    break
        finally:
            steps.close()
            self._commit(prompt, np.array(answer, dtype=np.int32), prefill)

    def _commit(self, prompt: Prompt, answer: Tokens, prefill: Prefill) -> Commit:
        """Cache what was fed to the model: all but the answer's last token."""
        computed = prompt.extended(answer).head(len(prompt) + len(answer) - 1)
        commit = self.strategy.commit(computed, prefill.plan)
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
