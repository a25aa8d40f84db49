"""Every token of every request has one cause, and evictions are attributed rightly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxlab.analysis.misses.attribution import RequestAttribution, attribute
from mlxlab.analysis.misses.causes import BY_STRATEGY, Cause
from mlxlab.analysis.misses.evictions import leading
from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.bounds import UnlimitedMemory
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import STRATEGIES, Strategy, parse_strategy
from mlxlab.strategies.use import Use
from tests.strategies.test_contract import ROWS
from tests.support.ledger import Request
from tests.support.traffic import DETERMINISTIC, traffic

SESSIONS = ("a", "b", "a/agent")
LAST = 9
"""Ends every answer; never fed to a model."""

EXACT = {name: row for name, row in ROWS.items() if STRATEGIES[name].exact}
exact_strategies = pytest.mark.parametrize("name", [*EXACT, "unlimited"])


def make(name: str) -> Strategy:
    return EXACT[name].make() if name in EXACT else UnlimitedMemory()


def words(tokens: Tokens) -> str:
    return " ".join(map(str, tokens.tolist()))


def rendered(requests: list[Request], sessions: list[int]) -> list[RenderedRequest]:
    return [
        RenderedRequest(
            SESSIONS[session],
            number,
            request.prompt,
            np.array([*request.answer, LAST], np.int32),
        )
        for number, (request, session) in enumerate(
            zip(requests, sessions, strict=False)
        )
    ]


FEWER = settings(DETERMINISTIC, max_examples=40)

#: More sessions than requests, so that every request has one.
sessions = st.lists(st.integers(0, 2), min_size=12, max_size=12)


def check_books(attribution: RequestAttribution) -> None:
    """Parts tile the prompt, and those with a cause are the ones computed."""
    edges = [(part.start, part.stop) for part in attribution.parts]
    assert [0, *(stop for _, stop in edges)] == [
        *(start for start, _ in edges),
        len(attribution.request.prompt),
    ]
    computed = sum(len(part) for part in attribution.parts if part.cause)
    assert computed + attribution.plan.recompute == attribution.missed


@pytest.mark.parametrize("name", ROWS)
def test_the_causes_of_a_request_add_up_to_its_missed_tokens(name: str) -> None:
    @FEWER
    @given(requests=traffic(), sessions=sessions)
    def check(requests: list[Request], sessions: list[int]) -> None:
        asked = rendered(requests, sessions)
        attributions = list(attribute(asked, ROWS[name].make(), words))
        assert [attribution.request for attribution in attributions] == asked
        replayed = ROWS[name].make()
        for attribution in attributions:
            check_books(attribution)
            plan = replayed.plan(attribution.request.prompt)
            replayed.commit(attribution.request.computed, plan)
            assert attribution.plan == plan

    check()


def past_reach(name: str, asked: list[RenderedRequest], prompt: Prompt) -> list[int]:
    """What of ``prompt`` could be restored after each commit, by trying."""
    strategy, reach = make(name), []
    for request in asked:
        strategy.commit(request.computed, strategy.plan(request.prompt))
        reach.append(leading(strategy, strategy.plan(prompt)))
    return reach


@exact_strategies
def test_blames_the_commit_after_which_a_token_could_not_be_restored(
    name: str,
) -> None:
    seen: Counter[Cause] = Counter()

    @FEWER
    @given(requests=traffic(), sessions=sessions)
    def check(requests: list[Request], sessions: list[int]) -> None:
        asked = rendered(requests, sessions)
        for number, attribution in enumerate(attribute(asked, make(name), words)):
            prompt = attribution.request.prompt
            reach = past_reach(name, asked[:number], prompt)
            for part in attribution.parts:
                by_prompt = part.cause not in {*BY_STRATEGY, Cause.LAST, None}
                assert by_prompt == (part.start >= attribution.known)
                if part.cause not in BY_STRATEGY:
                    continue
                seen[part.cause] += len(part)
                for position in range(part.start, part.stop):
                    after = [i for i, held in enumerate(reach) if held > position]
                    if part.cause is Cause.EVICTED:
                        assert part.evictor is asked[after[-1] + 1]
                    elif part.cause is Cause.MINIMUM:
                        assert after[-1] == number - 1
                    else:
                        assert not after

    check()
    if name not in {"none", "unlimited"}:
        assert seen[Cause.EVICTED]
    if name in {"block-hash", "paged"}:
        assert seen[Cause.BLOCK]
    assert bool(seen[Cause.MINIMUM]) == (name == "block-hash")
    assert (set(seen) == {Cause.NOT_KEPT}) == (name == "none")


def test_a_repeated_prompt_lacks_its_last_token_only() -> None:
    asked = rendered([Request([1] * 30), Request([1] * 30)], [0, 0])
    _, again = attribute(asked, parse_strategy("prefix"), words)
    assert [(part.start, part.cause) for part in again.parts] == [
        (0, None),
        (29, Cause.LAST),
    ]


@pytest.mark.parametrize(
    ("session", "side", "cause"),
    [
        ("b", False, Cause.SESSION),
        ("a/agent", False, Cause.AGENT),
        ("a", True, Cause.SIDE),
    ],
)
def test_the_first_of_a_kind_has_nothing_to_be_compared_with(
    session: str, side: bool, cause: Cause
) -> None:
    first, other = Request(list(range(40)), static=30), Request([50] * 40, static=30)
    asked = [
        RenderedRequest("a", 0, first.prompt, np.array([LAST], np.int32)),
        RenderedRequest(
            session, 1, other.prompt, np.array([LAST], np.int32), use=Use(side=side)
        ),
    ]
    *_, attribution = attribute(asked, parse_strategy("paged"), words)
    assert [part.cause for part in attribution.parts] == [cause, cause]
    assert attribution.predecessor is None


def test_who_evicted_is_the_request_and_not_the_latest_of_its_session() -> None:
    """Three sessions in one slot: the one in between took it."""
    ids = [list(range(40)), list(range(100, 140)), list(range(40, 80))]
    requests = [Request(ids[0]), Request(ids[1]), Request(ids[2]), Request(ids[0])]
    asked = rendered(requests, [0, 1, 2, 0])
    *_, attribution = attribute(asked, parse_strategy("prefix"), words)
    evicted = [part for part in attribution.parts if part.cause is Cause.EVICTED]
    assert [part.evictor for part in evicted] == [asked[1]]
