"""What requests do not say, and an eviction policy would go by."""

from __future__ import annotations

from collections.abc import Iterable

from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies.eviction import EVICTIONS

__all__ = ["describe_missing"]

#: Least share of the requests that says something, for it to count as known.
_ENOUGH = 0.5


def describe_missing(
    requests: Iterable[RenderedRequest],
    policies: Iterable[str],
    *,
    clocked: bool = False,
) -> list[str]:
    """Return a line for each thing that policies go by, and most requests do not say.

    Args:
        requests: a workload, which is read once if a policy goes by anything.
        policies: names. Those that go by the order of uses alone miss nothing.
        clocked: whether a simulated clock says when each request comes.
    """
    timed = [name for name in dict.fromkeys(policies) if EVICTIONS[name].is_timed]
    if not timed:
        return []
    came: set[float] = set()
    known = {"when they came": 0, "which agent asks": 0, "how their answers ended": 0}
    number = 0
    for request in requests:
        number += 1
        use = request.use
        came |= set() if use.t is None else {use.t}
        # Side requests are no turns: how they end says nothing of what comes next.
        said = use.t is not None, bool(use.agent), bool(use.stop) or use.side
        for what, own in zip(known, said, strict=True):
            known[what] += own
    if clocked:
        known["when they came"] = number
    elif len(came) < min(number, 2):
        known["when they came"] = 0  # one time for all is none
    who = " and ".join(timed)
    then = dict.fromkeys(known, "evicts as lru")
    then["how their answers ended"] = "knows less"
    return [
        f"{_share(count, number)} {what}: evict={who} {then[what]}"
        for what, count in known.items()
        if count < _ENOUGH * number
    ]


def _share(count: int, number: int) -> str:
    share = f"only {count / number:.0%}" if count else "none"
    return f"{share} of the requests say"
