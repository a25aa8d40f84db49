"""Which earlier request a prompt is compared with."""

from __future__ import annotations

import numpy as np

from mlxlab.analysis.misses.predecessors import PredecessorIndex, grams
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies.use import Use

SYSTEM = list(range(1000, 1100))
OTHER = list(range(2000, 2100))


def request(
    request: int, session: str, system: list[int], talk: list[int], side: bool = False
) -> RenderedRequest:
    ids = system + talk
    segments = (
        Segment("system[0]", Role.SYSTEM, 0, len(system)),
        Segment("messages[0].text[0]", Role.USER, len(system), len(ids)),
    )
    prompt = Prompt(Prompt.of(ids).tokens, segments)
    return RenderedRequest(
        session, request, prompt, np.empty(0, np.int32), use=Use(side=side)
    )


def predecessors(*requests: RenderedRequest) -> PredecessorIndex:
    found = PredecessorIndex()
    for one in requests:
        found.add(one)
    return found


def found(known: PredecessorIndex, asked: RenderedRequest) -> int | None:
    predecessor = known.find(asked)
    return predecessor.request.id if predecessor else None


def test_a_request_is_compared_with_the_latest_of_its_session() -> None:
    talk = list(range(50))
    known = predecessors(
        request(0, "a", SYSTEM, talk[:20]),
        request(1, "a", SYSTEM, talk[:30]),
        request(2, "b", SYSTEM, talk[:40]),
    )
    assert found(known, request(3, "a", SYSTEM, talk)) == 1
    # Also where nearly nothing of its prefix is left.
    assert found(known, request(3, "a", [7, *SYSTEM], talk)) == 1


def test_two_conversations_under_one_id_are_told_apart() -> None:
    one, two = list(range(300)), list(range(300, 600))
    known = predecessors(request(0, "a", SYSTEM, one), request(1, "a", SYSTEM, two))
    assert found(known, request(2, "a", SYSTEM, [*one, 5])) == 0
    assert found(known, request(2, "a", SYSTEM, [*two, 5])) == 1


def test_a_new_session_is_compared_with_one_of_the_same_instructions() -> None:
    known = predecessors(request(0, "a", SYSTEM, [1]), request(1, "b", OTHER, [1]))
    assert found(known, request(2, "c", SYSTEM, [2])) == 0
    assert found(known, request(2, "c", OTHER, [2])) == 1
    assert found(known, request(2, "c", list(range(3000, 3100)), [1])) is None


def test_a_side_request_is_none_of_the_conversation() -> None:
    known = predecessors(
        request(0, "a", SYSTEM, [1]), request(1, "a", OTHER, [1], side=True)
    )
    assert found(known, request(2, "a", SYSTEM, [2])) == 0
    assert found(known, request(2, "a", OTHER, [2], side=True)) == 1


def test_runs_of_tokens_have_one_hash_wherever_they_stand() -> None:
    ids = np.arange(20, dtype=np.int32)
    assert np.array_equal(grams(ids)[3:], grams(ids[3:]))
    assert len(np.unique(grams(ids))) == 15
    assert len(grams(ids[:5])) == 0
