"""Why prompt tokens were computed, and what would have saved them.

Knows names and remedies only; who is to blame is found in
:mod:`mlxlab.analysis.misses.attribution`.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from mlxlab.prompt import Role
from mlxlab.strategies import Strategy
from mlxlab.strategies.paged import Paged

__all__ = ["BY_STRATEGY", "NOTHING", "Cause", "remedy_of"]

NOTHING = "nothing: "
"""How a remedy begins where there is none."""


class Cause(StrEnum):
    """Why a token was computed, in the order of reports."""

    #: A block in front of it is not what it was.
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
    #: There was nothing like this prompt before.
    SESSION = "new session"
    AGENT = "sub-agent"
    SIDE = "side request"
    #: It was computed in this place before.
    EVICTED = "evicted"
    NOT_KEPT = "not kept"
    MINIMUM = "below minimum"
    BLOCK = "block granularity"
    AGAIN = "computed again"
    LAST = "last token"
    #: Nobody said it before.
    FRESH = "fresh content"


#: Causes that lie with the strategy, not with the prompt.
BY_STRATEGY = frozenset(
    {Cause.EVICTED, Cause.NOT_KEPT, Cause.MINIMUM, Cause.BLOCK, Cause.AGAIN}
)

_SLOTS = ("slots", "max_size")

#: The rule that keeps a cause away.
_RULES = {
    Cause.HEADER: "drop-attribution",
    Cause.INLINE: "inline-system",
    Cause.WORDS: "environment-first",
}

#: What helps where no rule does. Which approximate strategy restores what, see the
#: recorded fidelity runs: the limits of ``suffix`` leave cuts and other orders alone.
_OTHERWISE = {
    Cause.HEADER: "CLAUDE_CODE_ATTRIBUTION_HEADER=0",
    Cause.ENVIRONMENT: "suffix (approximate)",
    Cause.SYSTEM: "suffix (approximate)",
    Cause.TOOLS: "suffix (approximate)",
    Cause.ORDER: "one order of tools, or segmented-naive (approximate)",
    Cause.INLINE: "suffix (approximate)",
    Cause.MOVED: "suffix (approximate)",
    Cause.EDITED: "suffix (approximate)",
    Cause.CUT: "suffix-naive (approximate)",
    Cause.WORDS: "suffix (approximate)",
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
    deferred: bool = False,
    unit: int = 1,
) -> str:
    """The rule or setting that would have saved tokens lost to ``cause``.

    Args:
        cause: why they were computed.
        strategy: what was asked for them.
        rules: names of the rules in force.
        lost: of the block that the tokens are in.
        changed: of the block that broke the prefix.
        deferred: whether that block is a tool that was loaded on the way.
        unit: tokens that one of the strategy's stands for.
    """
    match cause:
        case Cause.EVICTED:
            return _limit_of(strategy)
        case Cause.NOT_KEPT:
            limit = _limit_of(strategy)
            short = limit != "capacity" and "minimum" in strategy.parameters
            return "a smaller minimum" if short else limit
        case Cause.MINIMUM:
            return "a smaller minimum"
        case Cause.BLOCK:
            half = max(1, int(strategy.parameters["block"]) // 2) * unit
            return f"block={half} (about half of them)"
    rule = _rule_for(cause, lost, changed, deferred)
    if rule and rule not in rules:
        return f"rule {rule}"
    remedy = _OTHERWISE[cause]
    if "approximate" in remedy and not strategy.exact:
        return f"{NOTHING}beyond the limits of {strategy.name}"
    return remedy


def _rule_for(cause: Cause, lost: Role, changed: Role, deferred: bool) -> str | None:
    if cause is Cause.WORDS and lost is not Role.INLINE_SYSTEM:
        return None
    if cause is Cause.ENVIRONMENT and changed is Role.INLINE_SYSTEM:
        return "inline-system"
    if cause is Cause.TOOLS and deferred:
        return "deferred-tools"
    return _RULES.get(cause)


def _limit_of(strategy: Strategy) -> str:
    """The setting that bounds what it keeps now, or what has no such bound."""
    full = 2 * strategy.stored_bytes > strategy.capacity
    if full or isinstance(strategy, Paged):
        return "capacity"
    return next((name for name in _SLOTS if name in strategy.parameters), "paged")
