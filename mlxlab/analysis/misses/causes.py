"""Causes of misses, and the rule or setting that would have avoided each.

:mod:`mlxlab.analysis.misses.attribution` decides which cause applies.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from mlxlab.analysis.misses.evictions import block_of
from mlxlab.prompt import Role
from mlxlab.strategies import Limit, Strategy
from mlxlab.strategies.placements import parse_placement

__all__ = [
    "ABSENT",
    "BY_STRATEGY",
    "NOTHING",
    "NO_REMEDY",
    "RULE",
    "Cause",
    "CauseKind",
    "remedy_of",
]

NOTHING = "nothing: "
"""Begins the remedy of every cause that has none."""
ABSENT = "not known: most of the prompt is absent"
"""Replaces such a remedy where a history lacks most of its prompts."""
NO_REMEDY = (NOTHING, ABSENT)
RULE = "rule "
"""Begins a remedy that is a rule; its name follows."""
"""Beginnings of remedies that save no token."""


class CauseKind(StrEnum):
    """Kinds of misses, as in the literature on processor caches.

    Compulsory and capacity misses are two of Hill's three Cs
    (doi:10.1109/12.40842). Invalidated tokens were computed before, behind another
    prefix. Granularity costs the tokens below a block or a minimum, and those behind
    the last checkpoint.
    """

    COMPULSORY = "compulsory"
    CAPACITY = "capacity"
    INVALIDATED = "invalidated"
    GRANULARITY = "granularity"


class Cause(StrEnum):
    """Why a token was computed, in the order of reports."""

    #: A block in front of the token changed.
    HEADER = "attribution header"
    ENVIRONMENT = "date/environment"
    SYSTEM = "system text changed"
    TOOLS = "tool list changed"
    ORDER = "tool order"
    INLINE = "inline system moved"
    MOVED = "block moved"
    THINKING = "thinking re-rendered"
    ANSWER = "answer re-rendered"
    EDITED = "history edited"
    CUT = "history cut"
    WORDS = "behind new words"
    #: No earlier prompt resembles this one.
    SESSION = "new session"
    AGENT = "sub-agent"
    SIDE = "side request"
    #: It was computed at this position before.
    EVICTED = "evicted"
    NOT_KEPT = "not kept"
    MINIMUM = "below minimum"
    BLOCK = "block granularity"
    NO_CHECKPOINT = "no checkpoint here"
    AGAIN = "computed again"
    LAST = "last token"
    #: It was in no prompt and no answer before.
    FRESH = "fresh content"

    @property
    def kind(self) -> CauseKind:
        """The kind of miss."""
        return _KINDS.get(self, CauseKind.INVALIDATED)


#: Kinds of the causes that are not a changed prefix.
_KINDS = {
    Cause.SESSION: CauseKind.COMPULSORY,
    Cause.AGENT: CauseKind.COMPULSORY,
    Cause.SIDE: CauseKind.COMPULSORY,
    Cause.FRESH: CauseKind.COMPULSORY,
    Cause.LAST: CauseKind.COMPULSORY,
    Cause.EVICTED: CauseKind.CAPACITY,
    Cause.NOT_KEPT: CauseKind.CAPACITY,
    Cause.MINIMUM: CauseKind.GRANULARITY,
    Cause.BLOCK: CauseKind.GRANULARITY,
    Cause.NO_CHECKPOINT: CauseKind.GRANULARITY,
}


#: Causes due to the strategy and not to the prompt.
BY_STRATEGY = frozenset(
    {
        *(Cause.EVICTED, Cause.NOT_KEPT, Cause.MINIMUM, Cause.BLOCK),
        *(Cause.NO_CHECKPOINT, Cause.AGAIN),
    }
)

#: The rule that avoids a cause.
_RULES = {
    Cause.HEADER: "drop-attribution",
    Cause.INLINE: "inline-system",
    Cause.WORDS: "environment-first",
}

#: Remedies that are approximate strategies. The recorded fidelity runs show which
#: tokens each restores: the limits of ``suffix`` exclude cuts and other orders.
_APPROXIMATE = {
    Cause.ENVIRONMENT: "suffix",
    Cause.SYSTEM: "suffix",
    Cause.TOOLS: "suffix",
    Cause.ORDER: "one order of tools, or segmented-naive",
    Cause.INLINE: "suffix",
    Cause.MOVED: "suffix",
    Cause.EDITED: "suffix",
    Cause.CUT: "suffix-naive",
    Cause.WORDS: "suffix",
}

#: Remedies that are neither rules nor strategies.
_OTHERWISE = {
    Cause.HEADER: "CLAUDE_CODE_ATTRIBUTION_HEADER=0",
    Cause.THINKING: "give thinking back as it was answered",
    Cause.ANSWER: "printing calls as they were generated",
    Cause.SESSION: NOTHING + "first of its kind",
    Cause.AGENT: NOTHING + "first of its kind",
    Cause.SIDE: NOTHING + "first of its kind",
    Cause.AGAIN: "recompute=0",
    Cause.LAST: NOTHING + "its logits are the answer's",
    Cause.FRESH: NOTHING + "new text",
}


def remedy_of(
    cause: Cause,
    strategy: Strategy,
    rules: Collection[str],
    *,
    lost: Role = Role.UNKNOWN,
    changed: Role = Role.UNKNOWN,
    rule: str = "",
    unit: int = 1,
    nearer: str = "",
) -> str:
    """Return the rule or setting that would have saved tokens lost to ``cause``.

    Args:
        cause: why the tokens were computed.
        strategy: the strategy that planned the prompt.
        rules: names of the rules in force.
        lost: role of the block that the tokens are in.
        changed: role of the block that broke the prefix.
        rule: the rule that would have undone that change, if it is known.
        unit: tokens that one id of the strategy's prompts stands for.
        nearer: the placement that would have put a checkpoint behind the tokens.
    """
    limits = strategy.limits
    match cause:
        case Cause.EVICTED:
            return _limit_of(strategy)
        case Cause.NOT_KEPT:
            limit = _limit_of(strategy)
            short = limit != limits.get(Limit.CAPACITY) and Limit.MINIMUM in limits
            return f"a smaller {limits[Limit.MINIMUM]}" if short else limit
        case Cause.MINIMUM:
            return f"a smaller {limits.get(Limit.MINIMUM, 'minimum')}"
        case Cause.BLOCK:
            half = max(1, block_of(strategy) // 2) * unit
            return f"{limits[Limit.BLOCK]}={half} (about half of them)"
        case Cause.NO_CHECKPOINT:
            return _checkpoint_at(strategy, nearer)
    for name in (rule, _rule_for(cause, lost, changed)):
        if name and name not in rules:
            return RULE + name
    if cause not in _APPROXIMATE:
        return _OTHERWISE[cause]
    if not strategy.exact:
        return f"{NOTHING}beyond the limits of {strategy.name}"
    return f"{_APPROXIMATE[cause]} (approximate)"


def _rule_for(cause: Cause, lost: Role, changed: Role) -> str | None:
    if cause is Cause.WORDS and lost is not Role.INLINE_SYSTEM:
        return None
    if cause is Cause.ENVIRONMENT and changed is Role.INLINE_SYSTEM:
        return "inline-system"
    return _RULES.get(cause)


def _limit_of(strategy: Strategy) -> str:
    """Return the setting that limits the memory in use, or a strategy without it."""
    full = 2 * strategy.stored_bytes > strategy.capacity
    capacity = strategy.limits.get(Limit.CAPACITY)
    if capacity and (full or strategy.occupancy is None):
        return capacity
    return strategy.limits.get(Limit.SLOTS, "paged")


def _checkpoint_at(strategy: Strategy, nearer: str) -> str:
    """Return the setting that would have kept a checkpoint where ``nearer`` does."""
    own = strategy.parameters.get("checkpoints")
    if not nearer:
        return f"{NOTHING}no placement puts one nearer"
    if own is None:  # this strategy has places of its own
        return f"paged:checkpoints={nearer}"
    if nearer != own:
        return f"add {nearer} to checkpoints"
    most = parse_placement(nearer).most
    share = int(strategy.parameters["share"])
    held = (strategy.stored_checkpoints + 1) * strategy.checkpoint_bytes
    if share < 100 and held > strategy.capacity * share // 100:
        return "a larger share"
    if most is not None:
        return f"checkpoints that keep more than {most} of a sequence"
    return strategy.limits.get(Limit.CAPACITY, "paged")
