"""How many sequences stay side by side: what strategies declare is what they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.strategies import STRATEGIES, Limit, Strategy, make_strategy
from mlxlab.strategies.none import NoReuse

STATIC, LENGTH = 512, 1536
#: Enough for each strategy that limits them, none for the others.
MOST = 3


def make(name: str) -> Strategy:
    slots = STRATEGIES[name].limits.get(Limit.SLOTS)
    given: dict[str, Any] = {slots: MOST} if slots else {}
    return make_strategy(name, **given)


def conversation(number: int) -> Prompt:
    """Of an agent like the others: the same static part, a history of its own."""
    ids = np.random.default_rng(number).integers(9, 999, LENGTH, dtype=np.int32)
    ids[:STATIC] = np.arange(STATIC)
    segments = (
        Segment("system", Role.SYSTEM, 0, STATIC),
        Segment("messages[0]", Role.USER, STATIC, LENGTH),
    )
    return Prompt(ids, segments)


def kept(strategy: Strategy, conversations: int) -> int:
    """How many are restored beyond their static part, once all were seen."""
    for number in range(conversations):
        prompt = conversation(number)
        strategy.commit(prompt, strategy.plan(prompt))
    plans = (strategy.plan(conversation(n)) for n in range(conversations))
    return sum(plan.reused > LENGTH // 2 for plan in plans)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_keeps_as_many_as_it_says(name: str) -> None:
    most = make(name).max_sequences
    assert kept(make(name), MOST) == (MOST if most is None else min(most, MOST))
    if most:
        assert kept(make(name), most + 3) == most
    if most is None:
        assert kept(make(name), 20) == 20


def test_what_keeps_nothing_says_so() -> None:
    assert NoReuse().max_sequences == 0
