"""The contract of a cache strategy: what to reuse, keep and drop.

A strategy sees tokens and segments and answers with handles and spans. It never
touches an array of keys and values, a model or a tokenizer, so that one object
serves simulation, live replay and the server, and reuses the same tokens in all
three.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, TypeAlias

from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.prompt import Prompt

__all__ = [
    "CAPACITY",
    "Commit",
    "Cut",
    "Handle",
    "Parameter",
    "Plan",
    "Put",
    "Selection",
    "Span",
    "Strategy",
]

log = logging.getLogger(__name__)

#: Bytes of keys and values that a strategy may hold if nobody says otherwise.
CAPACITY = 4 << 30

Handle: TypeAlias = int
"""Names stored keys and values; unique over a strategy's life."""

Parameter: TypeAlias = int | str
"""What tells one instance of a strategy from another: a number or a choice."""


class Selection(StrEnum):
    """How the engine picks the moved tokens that it computes again.

    ``random`` is the control. ``deviation`` takes those whose keys in the second layer
    differ most from newly computed ones (CacheBlend, arXiv 2405.16444), ``attention``
    those that the prompt's last tokens attend to most at their true positions
    (InfoFlow-KV, arXiv 2603.05353).
    """

    RANDOM = "random"
    DEVIATION = "deviation"
    ATTENTION = "attention"


@dataclass(frozen=True, slots=True)
class Span:
    """``length`` stored positions of ``handle`` from ``source``, put at ``target``.

    A span is exact if its keys and values are those of the same tokens at the same
    positions after the same predecessors, all of them exact.

    Attributes:
        source: counts from the first position that ``handle`` holds.
        target: counts from the start of the prompt.
        generation: how often something was moved on the way to these keys and values;
            0 if they were computed over exact ones only.
        origin: the position that the first of them was computed at, if they are used
            behind other predecessors now; None if nothing has changed for them.
        predecessor: digest of the tokens that they were computed behind, if moved.
    """

    handle: Handle
    source: int
    target: int
    length: int
    generation: int = 0
    origin: int | None = None
    predecessor: bytes = b""

    @property
    def moved(self) -> bool:
        """Whether it stands behind other tokens than where it was computed."""
        return self.origin is not None

    @property
    def exact(self) -> bool:
        """Whether computing it again would give the same."""
        return not self.moved and self.generation == 0

    @property
    def shift(self) -> int:
        """How many positions further it stands than where it was computed."""
        return 0 if self.origin is None else self.target - self.origin

    def head(self, length: int) -> Span:
        """Its first ``length`` positions, all if there are fewer."""
        return replace(self, length=min(self.length, length))


@dataclass(frozen=True, slots=True)
class Plan:
    """What of a prompt is restored; what the spans leave open is computed.

    Attributes:
        length: tokens in the prompt.
        spans: in order of target, without overlap. At least one token, the
            last, is always left open: its logits are the answer's first.
        best_match: the longest reuse that the strategy saw before its own limits
            (a minimum) were applied; one that knows blocks only sees whole ones.
        recompute: how many tokens of moved spans are computed again after all.
        selection: how they are picked.
        rotate: whether moved keys are rotated to their new positions.
    """

    length: int
    spans: tuple[Span, ...] = ()
    best_match: int = 0
    recompute: int = 0
    selection: Selection = Selection.ATTENTION
    rotate: bool = True

    @property
    def reused(self) -> int:
        """Tokens restored and not computed again."""
        return sum(span.length for span in self.spans) - self.recompute

    @property
    def moved(self) -> int:
        """Tokens in moved spans."""
        return sum(span.length for span in self.spans if span.moved)

    @property
    def exact_length(self) -> int:
        """Leading tokens whose keys and values are exact once all is computed."""
        targets = (span.target for span in self.spans if not span.exact)
        return next(targets, self.length)

    @property
    def generation(self) -> int:
        """Of what is computed behind the exact tokens."""
        return max(
            (s.generation + s.moved for s in self.spans if not s.exact), default=0
        )

    @property
    def gaps(self) -> Iterator[tuple[int, int]]:
        """Half-open position ranges to compute, in order."""
        position = 0
        for span in self.spans:
            if span.target > position:
                yield position, span.target
            position = span.target + span.length
        if position < self.length:
            yield position, self.length

    def head(self, length: int) -> Plan:
        """What of the plan lies within the first ``length`` tokens, if cut there."""
        if length >= self.length:
            return self
        spans = tuple(
            span.head(length - span.target)
            for span in self.spans
            if span.target < length
        )
        moved = sum(span.length for span in spans if span.moved)
        return replace(
            self,
            length=length,
            spans=spans,
            best_match=min(self.best_match, length),
            recompute=min(self.recompute, moved),
        )


@dataclass(frozen=True, slots=True)
class Put:
    """Store positions ``[start, stop)`` of the computed sequence as ``handle``."""

    handle: Handle
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Of what ``handle`` holds, only positions ``[start, stop)`` stay.

    They are counted from the first that it holds.
    """

    handle: Handle
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Changes to the store, in the order of the attributes.

    So capacity holds in between.

    Attributes:
        drop: handles whose keys and values go.
        cut: handles of which a part goes.
        put: what to store.
        evicted: tokens that could be restored before and cannot be any more.
    """

    drop: tuple[Handle, ...] = ()
    cut: tuple[Cut, ...] = ()
    put: tuple[Put, ...] = ()
    evicted: int = 0


class Strategy(ABC):
    """A cache policy. One file each; see :data:`mlxlab.strategies.STRATEGIES`.

    Subclasses set ``name`` and ``summary`` and implement ``_match``, ``commit``,
    ``stored_tokens`` and ``check_integrity``.

    Args:
        capacity: most bytes of keys and values to hold.
        token_bytes: keys and values of one token, all layers, in bytes. Turns
            tokens into ``stored_bytes`` and the capacity into tokens.

    Raises:
        StrategyError: a parameter is out of range.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    exact: ClassVar[bool] = True
    #: Parameters that count tokens.
    in_tokens: ClassVar[tuple[str, ...]] = ()
    #: Values that are worth trying out on somebody's traffic, by parameter.
    choices: ClassVar[Mapping[str, tuple[int, ...]]] = {}

    def __init__(self, *, capacity: int = CAPACITY, token_bytes: int = 1) -> None:
        require(self.name, capacity=capacity, token_bytes=token_bytes)
        self.capacity = capacity
        self.token_bytes = token_bytes

    def plan(self, prompt: Prompt) -> Plan:
        """What to reuse for ``prompt``. Changes nothing; logs a HIT or a MISS.

        Raises:
            StrategyError: the prompt is empty.
        """
        if len(prompt) == 0:
            raise StrategyError(f"{self.name}: an empty prompt has no plan")
        plan = self._match(prompt)
        _log_outcome(plan, self.occupancy)
        return plan

    @abstractmethod
    def _match(self, prompt: Prompt) -> Plan:
        """The plan for a prompt of at least one token."""

    @abstractmethod
    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        """Take in a sequence whose keys and values have all been computed.

        Args:
            prompt: the planned prompt, usually extended by the answer. The last
                sampled token is absent: it was never fed to the model.
            plan: what :meth:`plan` returned for it.
        """

    def restorable_after(self, length: int) -> int:
        """Leading tokens that can be restored right after a commit of ``length``."""
        return length

    @property
    def occupancy(self) -> tuple[int, int] | None:
        """Slots in use and slots in all; None if it holds no fixed number of them."""
        return None

    @property
    def capacity_tokens(self) -> int:
        """Whole tokens that the capacity holds."""
        return self.capacity // self.token_bytes

    @property
    @abstractmethod
    def stored_tokens(self) -> int:
        """Token positions held by the store, shared ones counted once."""

    @property
    def stored_bytes(self) -> int:
        """Bytes held by the store."""
        return self.stored_tokens * self.token_bytes

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """What distinguishes this instance, for a manifest."""
        return {}

    @abstractmethod
    def check_integrity(self) -> None:
        """Recount the books from scratch.

        Raises:
            IntegrityError: they disagree, or capacity is exceeded.
        """

    def _check_capacity(self) -> None:
        if self.stored_bytes > self.capacity:
            raise IntegrityError(
                f"{self.name}: {self.stored_bytes} bytes in {self.capacity}"
            )

    def __repr__(self) -> str:
        parameters = ", ".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{type(self).__name__}({parameters})"


def require(owner: str, **parameters: int) -> None:
    """Raise StrategyError unless every parameter is a whole number of 1 or more."""
    for key, value in parameters.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise StrategyError(
                f"{owner}: {key}={value!r} is not accepted; give a whole number >= 1"
            )


def _log_outcome(plan: Plan, occupancy: tuple[int, int] | None) -> None:
    reused, length = plan.reused, plan.length
    if reused:
        share = 100 * reused / length
        log.info(
            "Cache HIT: reusing %d/%d tokens (%.1f%% cached)", reused, length, share
        )
        return
    slots = f", {occupancy[0]} of {occupancy[1]} slots in use" if occupancy else ""
    log.info(
        "Cache MISS: computing %d tokens (best match was %d tokens%s)",
        *(length, plan.best_match, slots),
    )
