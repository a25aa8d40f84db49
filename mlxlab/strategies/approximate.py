"""Position-independent reuse: keys and values moved to other positions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mlxlab.errors import IntegrityError
from mlxlab.models.layout import Windows
from mlxlab.prompt import Prompt, Role, Tokens
from mlxlab.strategies.paged import Paged
from mlxlab.strategies.parameters import Kind, ParameterValue, parameter
from mlxlab.strategies.plan import Commit, Plan, Selection, Span
from mlxlab.strategies.sequences.hashing import DIGEST_BYTES
from mlxlab.strategies.sequences.matches import CachedSequence, Run

__all__ = ["Approximate", "Naive"]

GOVERNING = frozenset({Role.SYSTEM, Role.TOOLS})

#: Recomputes a run's first tokens, which the plan can leave open itself.
FIRST = "first"

ANY_GENERATION = 1 << 62


class Approximate(Paged):
    """Exact reuse of the prefix, position-independent reuse of runs behind it.

    Keys and values are restored behind other tokens than they were computed behind, so
    answers are approximate. CacheBlend (arXiv 2405.16444) recomputes selected tokens of
    reused text. EPIC (arXiv 2410.15332) recomputes the first tokens of each reused
    chunk. Prompt Cache (arXiv 2311.04934) reuses declared modules of prompts.

    The prefix is found and stored exactly as in :class:`Paged`, whose blocks record
    the generation of their keys. Everything computed over moved keys is of a higher
    generation. A conversation continues over it in place; by default nothing of it is
    moved again, and the next exact computation of these tokens replaces it.

    Runs are looked for in the latest cached sequences that differ by at least a run,
    as far as their blocks are resident and of a generation that may be moved. Spans
    refer to the blocks of the cached sequence, so keys are rotated once. The
    ``predecessor`` of a span is the digest of the tokens in front of it there.

    A run has to pass all limits, in this order: ``tail``, ``shift``, ``run``,
    ``rewritten``, ``governing``, ``head``. Its length is measured before its head is
    removed. A run that ends within a block of the prefix is not worth moving, and may
    even stand in its old place.

    The defaults are starting values from published measurements.
    """

    exact = False

    windows = Windows.CHECKPOINTS.value
    checkpoints = ""
    share = 0

    sequences: int = parameter(8, "Cached sequences that runs are looked for in.")
    generation: int = parameter(0, "Highest generation that is moved.", least=0)
    rotate: str = parameter(
        "yes",
        "Whether moved keys are rotated to their new positions.",
        words=("yes", "no"),
    )
    run: int = parameter(256, "Least tokens of a run.", kind=Kind.TOKENS)
    shift: int = parameter(
        2048,
        "Most positions that a run is moved by, either way; 0 for any number.",
        kind=Kind.TOKENS,
        least=0,
    )
    head: int = parameter(
        32,
        "Tokens at the start of each run that are computed again.",
        kind=Kind.TOKENS,
        least=0,
    )
    recompute: int = parameter(
        0,
        "Percentage of the moved tokens that are computed again.",
        kind=Kind.PERCENT,
        least=0,
    )
    selection: str = parameter(
        Selection.ATTENTION.value,
        "Which tokens are computed again: the first of each run, or see Selection.",
        words=(FIRST, *Selection),
    )
    tail: int = parameter(
        64,
        "Tokens at the end of the prompt that are never approximate.",
        kind=Kind.TOKENS,
    )
    rewritten: int = parameter(
        25,
        "Most tokens computed between prefix and run, heads not counted, as a "
        "percentage of the run; 0 for any number.",
        least=0,
    )
    governing: int = parameter(
        1024,
        "Most of those tokens that may be system text or tools, which change the "
        "meaning of the text behind them; 0 for any number.",
        kind=Kind.TOKENS,
        least=0,
    )

    def __init__(self, **parameters: ParameterValue) -> None:
        super().__init__(**parameters)
        self._cached: list[CachedSequence] = []  # least recently used first

    @abstractmethod
    def _find(self, prompt: Prompt, start: int) -> Iterable[list[Run]]:
        """Find runs of ``prompt`` in the cached sequences.

        Args:
            prompt: the prompt to plan.
            start: tokens that are restored in their old places.

        Returns:
            Alternatives, each a list of runs in order of target, without overlap,
            behind ``start``. Among equally long alternatives the first is used.
        """

    def _match(self, prompt: Prompt) -> Plan:
        prefix = tuple(self._prefix(prompt))
        start = sum(span.length for span in prefix)
        found = [
            [run.before(len(prompt) - 1) for run in runs]
            for runs in self._find(prompt, start)
        ]
        limited = [self._limited(prompt, start, runs) for runs in found]
        runs = max(limited, key=_tokens, default=[])
        plan = Plan(
            len(prompt),
            (*prefix, *(span for run in runs for span in self._spans(run))),
            best_match=start + max(map(_tokens, found), default=0),
            rotate=self.rotate == "yes",
        )
        if self.selection == FIRST:
            return plan
        share, selection = self._share(plan.moved), Selection(self.selection)
        return replace(plan, recompute=share, selection=selection)

    def _prefix(self, prompt: Prompt) -> Iterator[Span]:
        """Yield the resident prefix, without approximate tokens in the tail."""
        fresh = (len(prompt) - self.tail) // self.block * self.block
        for span in self._walk(prompt.tokens[:-1]):
            if span.exact:
                yield span
            elif span.target < fresh:
                yield span.head(fresh - span.target)

    def _limited(self, prompt: Prompt, start: int, found: list[Run]) -> list[Run]:
        """Return the runs within all limits, without their heads."""
        governs = _governing(prompt)
        computed = np.ones(len(prompt), np.bool_)
        kept: list[Run] = []
        for run in found:
            run = run.before(len(prompt) - self.tail)
            between = slice(start, run.target)
            new = int(np.count_nonzero(computed[between]))
            governing = int(np.count_nonzero(computed[between] & governs[between]))
            if run.stop > start + self.block and self._passes(run, new, governing):
                computed[run.target : run.stop] = False
                kept.append(run.cut(front=self._head(run)))
        return kept

    def _passes(self, run: Run, new: int, governing: int) -> bool:
        """Whether ``run``, behind this many ``new`` tokens, is within the limits."""
        return (
            (not self.shift or abs(run.shift) <= self.shift)
            and run.length >= self.run
            and (not self.rewritten or 100 * new <= self.rewritten * run.length)
            and (not self.governing or governing <= self.governing)
            and run.length > self._head(run)
        )

    def _head(self, run: Run) -> int:
        """Return the number of tokens to compute at the start of ``run``."""
        if self.selection != FIRST:
            return self.head
        return self.head + self._share(max(run.length - self.head, 0))

    def _share(self, moved: int) -> int:
        """Return the number of moved tokens to compute again, rounded up."""
        return -(-moved * self.recompute // 100)

    def _spans(self, run: Run) -> Iterator[Span]:
        stop, tokens = run.origin + run.length, run.cached.tokens
        for span in self._walk(tokens[: run.cached.stored]):
            origin = max(span.target, run.origin)
            length = min(span.target + span.length, stop) - origin
            if length > 0:
                yield replace(
                    span,
                    source=span.source + origin - span.target,
                    target=origin + run.shift,
                    length=length,
                    origin=origin,
                    predecessor=_digest(tokens[:origin]),
                )

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        """Commit as :class:`Paged`; runs are found in this sequence from now on."""
        moved = [span for span in plan.spans if span.moved]
        if moved:
            self._cached.sort(key=lambda cached: self._gave(cached, moved))
        commit = super()._store(prompt, plan)
        self._remember(prompt)
        return commit

    def _gave(self, cached: CachedSequence, moved: Iterable[Span]) -> bool:
        """Whether one of the spans was restored from ``cached``."""
        return any(
            span.handle == own.handle and 0 <= span.source - own.source < own.length
            for own in self._walk(cached.tokens[: cached.stored])
            for span in moved
        )

    def _remember(self, prompt: Prompt) -> None:
        """Add a cached sequence; trim and drop the earlier ones."""
        movable = self._movable(prompt.tokens)
        new = CachedSequence(prompt.head(movable + self.block), movable, self.block)
        cached = [
            old.head(self._movable(old.tokens[: old.stored])) for old in self._cached
        ]
        cached.append(new)
        cached.sort(key=lambda old: new.within(old, self.run))  # so they were used
        self._cached = self._distinct(cached)[-self.sequences :]

    def _movable(self, tokens: Tokens) -> int:
        """Count leading tokens that are resident and of a movable generation."""
        resident = self._walk(tokens)
        return sum(s.length for s in resident if s.generation <= self.generation)

    def _distinct(self, cached: list[CachedSequence]) -> list[CachedSequence]:
        """Return the sequences that differ from longer or later ones by a run."""
        ranked = [(own.stored, i, own) for i, own in enumerate(cached)]
        return [
            own
            for length, i, own in ranked
            if own.stored
            and not any(
                (longer, later) > (length, i) and own.within(other, self.run)
                for longer, later, other in ranked
            )
        ]

    def _check_stored(self) -> None:
        """Check blocks as Paged does; cached sequences are movable and distinct."""
        super()._check_stored()
        distinct = self._distinct(self._cached)
        if len(self._cached) > self.sequences or distinct != self._cached:
            raise IntegrityError(
                f"{self.name}: {len(self._cached)} cached sequences, {len(distinct)} "
                f"of them distinct, where {self.sequences} may be"
            )
        for cached in self._cached:
            movable = self._movable(cached.tokens[: cached.stored])
            if movable != cached.stored:
                raise IntegrityError(
                    f"{self.name}: of {cached.stored} tokens of a cached sequence "
                    f"{movable} are resident and of a generation up to "
                    f"{self.generation}"
                )


class Naive(Approximate):
    """Full reuse of all runs found, as they are.

    Nothing is rotated or computed again, and no limit holds but a block as the
    shortest run. Keys computed over moved keys are moved as well. CacheBlend calls
    this *full KV reuse*: it is the control that shows what the limits are for.
    """

    sequences = 8
    generation = ANY_GENERATION
    rotate = "no"
    run = 1
    shift = 0
    head = 0
    recompute = 0
    selection = Selection.ATTENTION.value
    tail = 1
    rewritten = 0
    governing = 0

    def __init__(self, **parameters: ParameterValue) -> None:
        super().__init__(**parameters)
        self.run = self.block


def _tokens(runs: Iterable[Run]) -> int:
    return sum(max(run.length, 0) for run in runs)


def _governing(prompt: Prompt) -> NDArray[np.bool_]:
    """Mark the tokens that are system text or tools."""
    governs = np.zeros(len(prompt), np.bool_)
    for segment in prompt.segments:
        if segment.role in GOVERNING:
            governs[segment.start : segment.stop] = True
    return governs


def _digest(tokens: Tokens) -> bytes:
    return blake2b(tokens.tobytes(), digest_size=DIGEST_BYTES).digest()
