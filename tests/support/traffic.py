"""Requests that share prefixes as requests of agents do, for Hypothesis."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from tests.support.ledger import Request

__all__ = ["DETERMINISTIC", "traffic"]

DETERMINISTIC = settings(derandomize=True, database=None, deadline=None)

IDS = st.integers(0, 2)


@st.composite
def traffic(
    draw: st.DrawFn, max_requests: int = 12, *, pins: bool = False
) -> list[Request]:
    """Draw requests over three ids; each cuts and extends an earlier sequence.

    With ``pins``, some fill the cache only and are pinned.
    """
    sequences: list[list[int]] = [draw(st.lists(IDS, min_size=6, max_size=24))]
    requests: list[Request] = []
    for _ in range(draw(st.integers(2, max_requests))):
        earlier = draw(st.sampled_from(sequences))
        whole = st.just(len(earlier))
        cut = draw(whole | whole | st.integers(0, len(earlier)))
        ids = earlier[:cut] + draw(st.lists(IDS, max_size=12)) or [0]
        static = min(draw(st.sampled_from([0, 4, 5, 9])), len(ids))
        pinned = pins and draw(st.integers(0, 3)) == 0
        answer = [] if pinned else draw(st.lists(IDS, max_size=4))
        requests.append(Request(ids, answer, static, pinned=pinned))
        sequences.append(ids + requests[-1].answer)
    return requests
