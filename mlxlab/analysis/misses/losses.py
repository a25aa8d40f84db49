"""What the causes of one prompt add up to: its main cause, and what could be saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from mlxlab.analysis.misses.attribution import CauseSpan, RequestAttribution
from mlxlab.analysis.misses.causes import NOTHING, Cause, remedy_of
from mlxlab.analysis.misses.classify import Change
from mlxlab.prompt import GLUE_ROLES, Role
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import Strategy

__all__ = ["Break", "Loss", "find_break", "find_losses", "main_cause", "remedy_for"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Computed tokens of a prompt, with their cause.

    Attributes:
        evictor: the request that evicted the tokens, if it is known.
    """

    cause: Cause
    tokens: int
    remedy: str
    evictor: RenderedRequest | None = None

    @property
    def is_avoidable(self) -> bool:
        """Whether a rule or setting would have saved the tokens."""
        return not self.remedy.startswith(NOTHING)


@dataclass(frozen=True, slots=True)
class Break:
    """Where a prompt is no longer what was computed before.

    Attributes:
        position: first token that was never computed in its place.
        label: of the block that breaks the prompt, or of the first new one.
        change: how the block changed; None if it is new.
    """

    position: int
    label: str
    role: Role
    change: Change | None


def find_losses(
    attribution: RequestAttribution, strategy: Strategy, rules: Collection[str]
) -> Iterator[Loss]:
    """Yield the computed tokens of a request; they add up to its missed tokens.

    Args:
        attribution: of the request.
        strategy: that has stored it by now.
        rules: names of the rules in force.
    """
    for part in attribution.parts:
        if part.cause is not None:
            tokens = attribution.request.tokens_between(part.start, part.stop)
            remedy = remedy_for(part, attribution, strategy, rules)
            yield Loss(part.cause, tokens, remedy, part.evictor)
    if again := attribution.plan.recompute:
        yield Loss(Cause.AGAIN, again, remedy_of(Cause.AGAIN, strategy, rules))


def remedy_for(
    part: CauseSpan,
    attribution: RequestAttribution,
    strategy: Strategy,
    rules: Collection[str],
) -> str:
    """Return what would have saved the tokens of a part; empty if they were reused."""
    if part.cause is None:
        return ""
    change = part.change
    return remedy_of(
        part.cause,
        strategy,
        rules,
        lost=part.role,
        changed=change.role if change else part.role,
        rule=change.rule if change else "",
        unit=attribution.request.unit,
        nearer=part.nearer,
    )


def main_cause(losses: Iterable[tuple[Cause, int]]) -> Cause:
    """Return the cause of most tokens.

    The rest of a block and the last token count only where there is nothing else.

    Args:
        losses: causes, with their tokens.
    """
    tokens: Counter[Cause] = Counter()
    for cause, lost in sorted(losses):
        tokens[cause] += lost
    few = {Cause.BLOCK, Cause.LAST}
    telling = {cause: n for cause, n in tokens.items() if cause not in few}
    return max(telling or tokens, key=lambda cause: tokens[cause])


def find_break(attribution: RequestAttribution) -> Break:
    """Return where and how a prompt broke."""
    position = min(attribution.known, len(attribution.request.prompt) - 1)
    block, change = _block_at(attribution.parts, position), attribution.change
    if change is None or not any(part.change for part in attribution.parts):
        return Break(position, block.label, block.role, None)
    return Break(position, change.label, change.role, change)


def _block_at(parts: Iterable[CauseSpan], position: int) -> CauseSpan:
    """Return the block at ``position``, or the next one behind template text."""
    behind = [part for part in parts if part.stop > position]
    return next((part for part in behind if part.role not in GLUE_ROLES), behind[0])
