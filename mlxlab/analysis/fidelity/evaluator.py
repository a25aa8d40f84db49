"""Compares answers over reused keys and values with those of a full prefill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from mlxlab.analysis.fidelity.divergence import Divergence, diverge
from mlxlab.analysis.fidelity.tool_calls import Agreement, AskedCall, agree, read_calls
from mlxlab.decoding import Grammar
from mlxlab.engine import Engine, Replayed
from mlxlab.engine.quantize import quantize_weights, stored_bits
from mlxlab.prompt import Role, common_prefix
from mlxlab.replay.live import LiveModel
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Progress
from mlxlab.replay.specs import StrategySpec
from mlxlab.strategies import make_strategy

__all__ = ["AnswerScore", "Evaluator", "Kind", "Variant"]


class Kind(StrEnum):
    """The reason why an answer may differ from the reference."""

    REFERENCE = "reference"
    FLOOR = "floor"
    QUANTIZED = "quantized"
    EXACT = "exact"
    APPROXIMATE = "approximate"


@dataclass(frozen=True, slots=True)
class Variant:
    """An engine that answers, with its name."""

    name: str
    kind: Kind
    engine: Engine


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """One answer compared with the reference's.

    Attributes:
        reused_tokens: prompt tokens restored and not computed again.
        shift: the largest distance that a reused token was moved, in positions; None
            without reuse.
        divergence: over the predictions of the recorded answer.
        greedy_prefix: leading tokens that greedy decoding shares with the reference.
        greedy_tokens: tokens that the reference decodes.
        answer: text of the greedy tokens, tags and control tokens included.
        calls: whether the same tools are called.
        right: whether greedy decoding gives the recorded answer; None unless the
            recorded answer is known to be right.
        ttft_s: seconds from the prompt's arrival to the first token's logits.
    """

    variant: Variant
    reused_tokens: int
    shift: int | None
    divergence: Divergence
    greedy_prefix: int
    greedy_tokens: int
    answer: str
    calls: Agreement
    right: bool | None
    ttft_s: float


class Evaluator:
    """Evaluates variants request by request.

    Attributes:
        baselines: variants that answer every request first: the full prefill that is
            the reference, a full prefill in smaller chunks, and full prefills with
            quantized weights.
        quantized: bit widths in use, those below the model's own.

    Args:
        live: the model. Each entry of ``quantized`` keeps one more copy in memory.
        quantized: bits to round weights to.
        floor_chunk: tokens that the noise floor's prefill computes at a time.
        tokens: most tokens of a recorded answer whose predictions are compared.
        greedy: most tokens to decode greedily.
    """

    def __init__(
        self,
        live: LiveModel,
        *,
        quantized: Iterable[int],
        floor_chunk: int,
        tokens: int,
        greedy: int,
    ) -> None:
        self.tokens = tokens
        self.greedy = greedy
        self._live = live
        self._grammar = Grammar.of(live.folder)
        self._stop = live.folder.end_ids
        own = stored_bits(live.model)
        self.quantized = tuple(bits for bits in quantized if own is None or bits < own)
        self.baselines = (
            self._full("full prefill", Kind.REFERENCE),
            self._full("noise floor", Kind.FLOOR, chunk=floor_chunk),
            *map(self._quantized, self.quantized),
        )

    def variant(self, spec: StrategySpec) -> Variant:
        """Return a variant for a strategy, with an empty cache.

        Raises:
            ModelError: the strategy cannot serve this model.
        """
        strategy = spec.make(self._live.folder.layout)
        kind = Kind.EXACT if strategy.is_exact else Kind.APPROXIMATE
        return Variant(spec.name, kind, self._live.engine(strategy))

    def fill(
        self, request: RenderedRequest, variants: Iterable[Variant], progress: Progress
    ) -> None:
        """Replay a request through variants to fill their caches only."""
        for variant in variants:
            self._replay(variant, request, progress, score=1, greedy=0)

    def evaluate(
        self,
        request: RenderedRequest,
        variants: Iterable[Variant],
        progress: Progress,
        *,
        task: bool = False,
    ) -> Iterator[AnswerScore]:
        """Score the baselines, the reference first, and then ``variants``.

        Args:
            request: the request to answer.
            variants: they store the request in their caches too.
            progress: see :data:`mlxlab.replay.simulator.Progress`.
            task: whether the recorded answer is the right one. Then at least as many
                tokens as it has are decoded.
        """
        greedy = max(self.greedy, len(request.answer) if task else 0)
        reference: Replayed | None = None
        for variant in (*self.baselines, *variants):
            done = self._replay(variant, request, progress, self.tokens, greedy)
            reference = reference or done
            yield self._score(variant, request, reference, done, task)

    def _full(self, name: str, kind: Kind, **options: Any) -> Variant:
        """Return a variant without reuse."""
        return Variant(name, kind, self._live.engine(make_strategy("none"), **options))

    def _quantized(self, bits: int) -> Variant:
        model = self._live.worker.call(quantize_weights, self._live.model, bits)
        return self._full(f"{bits}-bit weights", Kind.QUANTIZED, model=model)

    def _replay(
        self,
        variant: Variant,
        request: RenderedRequest,
        progress: Progress,
        score: int,
        greedy: int,
    ) -> Replayed:
        return self._live.worker.call(
            variant.engine.replay,
            request.prompt,
            request.answer,
            progress,
            score=score,
            greedy=greedy,
            stop=self._stop,
        )

    def _score(
        self,
        variant: Variant,
        request: RenderedRequest,
        reference: Replayed,
        done: Replayed,
        task: bool,
    ) -> AnswerScore:
        own, theirs = np.array(reference.greedy), np.array(done.greedy)
        return AnswerScore(
            variant=variant,
            reused_tokens=done.plan.reused,
            shift=max((abs(s.shift) for s in done.plan.spans if s.moved), default=None),
            divergence=diverge(reference.logits, done.logits, request.answer),
            greedy_prefix=common_prefix(own, theirs),
            greedy_tokens=len(own),
            answer=str(self._live.folder.tokenizer.decode(done.greedy)),
            calls=agree(self._calls(request, reference), self._calls(request, done)),
            right=done.greedy == tuple(request.answer.tolist()) if task else None,
            ttft_s=done.ttft_s,
        )

    def _calls(self, request: RenderedRequest, done: Replayed) -> tuple[AskedCall, ...]:
        openings = [s for s in request.prompt.segments if s.role is Role.GENERATION]
        tail = request.prompt.tokens[openings[-1].start :]
        thinking = self._grammar.opens_in_thinking(tail.tolist())
        ids = [token for token in done.greedy if token not in self._stop]
        return read_calls(self._grammar, ids, thinking=thinking)
