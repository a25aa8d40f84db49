"""Plans and commits: how a strategy says what to restore, store and drop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

__all__ = [
    "Commit",
    "Cut",
    "DiskCommit",
    "Handle",
    "Keep",
    "Plan",
    "Put",
    "Record",
    "Selection",
    "Span",
    "Tier",
]

Handle: TypeAlias = int
"""Names stored tokens or a checkpoint; unique among these over a strategy's life.

Handles of the disk are apart from those of memory: rows and checkpoints share them.
"""


class Tier(StrEnum):
    """Where stored tokens or a checkpoint are."""

    MEMORY = "memory"
    DISK = "disk"


class Selection(StrEnum):
    """How the engine picks the moved tokens that it computes again.

    ``random`` is the control. ``deviation`` picks the tokens whose keys in the second
    layer differ most from newly computed ones (CacheBlend, arXiv 2405.16444).
    ``attention`` picks the tokens that the prompt's last tokens attend to most at
    their true positions (InfoFlow-KV, arXiv 2603.05353).
    """

    RANDOM = "random"
    DEVIATION = "deviation"
    ATTENTION = "attention"


@dataclass(frozen=True, slots=True)
class Span:
    """``length`` positions stored at ``source`` of ``handle``, for ``target``.

    A span is exact if its keys and values are those of the same tokens at the same
    positions after the same predecessors, all of them exact.

    Attributes:
        source: offset from the first position that ``handle`` holds.
        target: offset from the start of the prompt.
        generation: how many approximate reuses these keys and values depend on; 0 if
            they were computed over exact ones only.
        origin: the position that the first of them was computed at, if they are reused
            behind other predecessors now; None if nothing has changed for them.
        predecessor: digest of the tokens that they were computed behind, if moved.
        tier: where they are stored.
    """

    handle: Handle
    source: int
    target: int
    length: int
    generation: int = 0
    origin: int | None = None
    predecessor: bytes = b""
    tier: Tier = Tier.MEMORY

    @property
    def moved(self) -> bool:
        """Whether the span stands behind other tokens than when it was computed."""
        return self.origin is not None

    @property
    def exact(self) -> bool:
        """Whether a new computation would give the same keys and values."""
        return not self.moved and self.generation == 0

    @property
    def shift(self) -> int:
        """Positions between where the span stands and where it was computed."""
        return 0 if self.origin is None else self.target - self.origin

    def head(self, length: int) -> Span:
        """Return the first ``length`` positions, all if there are fewer."""
        return self if length >= self.length else replace(self, length=length)


@dataclass(frozen=True, slots=True)
class Plan:
    """The spans of a prompt that are restored; everything between them is computed.

    Attributes:
        length: tokens in the prompt.
        spans: in order of target, without overlap. The last token at least is always
            left open: its logits give the answer's first token.
        best_match: the longest reuse before the strategy applied its own limits, such
            as a minimum. A strategy that stores blocks counts whole blocks only.
        recompute: moved tokens that are computed again after all.
        selection: how the recomputed tokens are picked.
        rotate: whether moved keys are rotated to their new positions.
        resume: the checkpoint at the end of the spans; None for a model that can be
            cut at any token, and where nothing is restored.
        resume_tier: where that checkpoint is stored.
        captures: positions to take a checkpoint at on the way, ascending. The engine
            ends a chunk at each.
    """

    length: int
    spans: tuple[Span, ...] = ()
    best_match: int = 0
    recompute: int = 0
    selection: Selection = Selection.ATTENTION
    rotate: bool = True
    resume: Handle | None = None
    captures: tuple[int, ...] = ()
    resume_tier: Tier = Tier.MEMORY

    @property
    def reused(self) -> int:
        """Tokens restored and not computed again."""
        return sum(span.length for span in self.spans) - self.recompute

    @property
    def moved(self) -> int:
        """Tokens in moved spans."""
        return sum(span.length for span in self.spans if span.moved)

    @property
    def disk_tokens(self) -> int:
        """Tokens restored from disk."""
        return sum(span.length for span in self.spans if span.tier is Tier.DISK)

    @property
    def in_memory(self) -> Plan:
        """The plan as memory sees it: what comes from disk is as good as computed."""
        spans = tuple(span for span in self.spans if span.tier is Tier.MEMORY)
        if self.resume_tier is Tier.MEMORY:
            return self if len(spans) == len(self.spans) else replace(self, spans=spans)
        return replace(
            self,
            spans=spans,
            resume=None,
            resume_tier=Tier.MEMORY,
            captures=(self.prefix_length, *self.captures),
        )

    @property
    def exact_length(self) -> int:
        """Leading tokens whose keys and values are exact once the gaps are computed."""
        targets = (span.target for span in self.spans if not span.exact)
        return next(targets, self.length)

    @property
    def prefix_length(self) -> int:
        """Leading tokens that are restored as they are."""
        length = 0
        for span in self.spans:
            if span.target != length or not span.exact:
                break
            length += span.length
        return length

    @property
    def generation(self) -> int:
        """The generation of everything computed behind the exact tokens."""
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
        """Return the plan for the first ``length`` tokens of the prompt."""
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
            captures=tuple(place for place in self.captures if place <= length),
        )


@dataclass(frozen=True, slots=True)
class Put:
    """Store positions ``[start, stop)`` of the computed sequence as ``handle``."""

    handle: Handle
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Keep only positions ``[start, stop)`` of ``handle``.

    Positions count from the first that the handle holds.
    """

    handle: Handle
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the checkpoint taken at ``position`` of the computed sequence."""

    handle: Handle
    position: int


@dataclass(frozen=True, slots=True)
class Record:
    """Rows of positions ``[start, stop)`` on disk; a checkpoint if both are equal.

    Attributes:
        parent: the rows in front, which go on at least to ``start``; 0 for none.
        used: number of the commit that used it last; commits of one disk count up.
        ids: of the tokens at its positions, int32.
    """

    handle: Handle
    parent: Handle
    start: int
    stop: int
    used: int
    ids: bytes

    @property
    def is_checkpoint(self) -> bool:
        """Whether this is the state behind ``stop`` tokens, without rows."""
        return self.start == self.stop


@dataclass(frozen=True, slots=True)
class DiskCommit:
    """Changes to the disk, applied in the order of the attributes.

    Attributes:
        erase: records to remove, none of which another depends on.
        used: records that were used, in the commit numbered ``number``.
        write: positions and checkpoints of the computed sequence to write.
        evicted: tokens in the erased records.
    """

    erase: tuple[Handle, ...] = ()
    used: tuple[Handle, ...] = ()
    number: int = 0
    write: tuple[Record, ...] = ()
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """Changes to the store, applied in the order of the attributes.

    In this order the capacity holds after every single change.

    Attributes:
        drop: handles to remove.
        forget: checkpoints to remove.
        cut: handles to remove a part of.
        put: positions to store.
        keep: checkpoints to keep.
        evicted: tokens that memory could restore before and cannot restore any more.
        disk: changes to the disk.
    """

    drop: tuple[Handle, ...] = ()
    forget: tuple[Handle, ...] = ()
    cut: tuple[Cut, ...] = ()
    put: tuple[Put, ...] = ()
    keep: tuple[Keep, ...] = ()
    evicted: int = 0
    disk: DiskCommit = DiskCommit()
