"""Why one request computed what it computed, in facts for events and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from mlxlab.analysis.misses.attribution import RequestAttribution
from mlxlab.analysis.misses.causes import Cause
from mlxlab.analysis.misses.losses import Loss, find_break, main_cause
from mlxlab.analysis.misses.text_diff import describe_change

__all__ = ["NOT_EXPLAINED", "Explanation"]

NOT_EXPLAINED = "not explained"
"""The cause where requests came faster than they could be explained."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The causes of one request.

    Attributes:
        kind: the :class:`~mlxlab.analysis.misses.causes.Cause` of most computed tokens,
            apart from the rest of a block and the last token.
        by: the request that evicted most of them, if they were evicted.
        detail: the block that broke the prompt and how it changed, secrets replaced.
        remedy: the rule or setting that would have saved tokens of this cause.
        shadow: tokens that other strategies would have reused, by spec.
        tokens: computed tokens, by cause.
        losses: computed tokens that a rule or setting would have saved, by cause and
            by what would have saved them; most tokens first.
    """

    kind: str = NOT_EXPLAINED
    by: int | None = None
    detail: str = ""
    remedy: str = ""
    shadow: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        attribution: RequestAttribution,
        losses: Sequence[Loss],
        shadow: Mapping[str, int],
    ) -> Self:
        """Explain a request.

        Args:
            attribution: of its tokens.
            losses: see :func:`~mlxlab.analysis.misses.losses.find_losses`.
            shadow: see above.
        """
        kind = main_cause((loss.cause, loss.tokens) for loss in losses)
        tokens: Counter[str] = Counter()
        avoidable: Counter[tuple[str, str]] = Counter()
        for loss in losses:
            tokens[str(loss.cause)] += loss.tokens
            if loss.is_avoidable:
                avoidable[str(loss.cause), loss.remedy] += loss.tokens
        most = dict(avoidable.most_common())
        return cls(
            str(kind),
            _evictor(kind, losses),
            _detail(attribution),
            next((remedy for cause, remedy in most if cause == kind), ""),
            shadow,
            tokens,
            most,
        )

    @property
    def cause(self) -> str:
        """A short label."""
        return f"{self.kind} by #{self.by}" if self.by is not None else self.kind

    @property
    def lost_tokens(self) -> int:
        """Computed tokens that a rule or setting would have saved."""
        return sum(self.losses.values())

    def facts(self, seconds: float) -> dict[str, Any]:
        """Return what an event says.

        Args:
            seconds: of each computed token.

        Returns:
            ``cause``, ``kind``, ``by``, ``detail``, ``remedy``, ``shadow``,
            ``lost_tokens``, ``lost_s``, and ``losses``: cause, remedy, tokens and
            seconds of each.
        """
        return {
            "cause": self.cause,
            "kind": self.kind,
            "lost_tokens": self.lost_tokens,
            "lost_s": self.lost_tokens * seconds,
            "by": self.by,
            "detail": self.detail,
            "remedy": self.remedy,
            "shadow": dict(self.shadow),
            "losses": [
                (cause, remedy, tokens, tokens * seconds)
                for (cause, remedy), tokens in self.losses.items()
            ],
        }


def _evictor(kind: Cause, losses: Sequence[Loss]) -> int | None:
    """Return the number of the request that evicted most, if that is the cause."""
    evictors: Counter[int] = Counter()
    for loss in losses:
        if loss.cause is kind and loss.evictor is not None:
            evictors[loss.evictor.id] += loss.tokens
    return evictors.most_common(1)[0][0] if evictors else None


def _detail(attribution: RequestAttribution) -> str:
    broken = find_break(attribution)
    where = f"at token {broken.position:,} in {broken.label}"
    if broken.change is None:
        return where
    return f"{where}\n{describe_change(broken.change.old, broken.change.new)}"
