"""Residual life: what is expected to be asked for last goes first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt
from mlxlab.replay.specs import StrategySpec
from mlxlab.strategies import Strategy
from mlxlab.strategies.eviction.gaps import Gaps
from mlxlab.strategies.eviction.residual import ResidualLife
from mlxlab.strategies.use import UNKNOWN, Use

LENGTH = 8


@dataclass(eq=False)
class Piece:
    start: int = 0
    stop: int = 1


class Conversations:
    """Agents that ask, on a strategy that holds two conversations of eight tokens."""

    def __init__(self, evict: str = "residual") -> None:
        spec = StrategySpec.parse(f"paged:block=1,capacity=16,evict={evict}", ())
        self.strategy: Strategy = spec.make(CacheLayout.plain(1))
        self.strategy.eviction.recall({})
        self.now = 0.0

    def ask(
        self, agent: str, after: float = 1.0, stop: str = "tool_use", **facts: Any
    ) -> int:
        """Ask for an agent's eight tokens; return how many are reused."""
        self.now += after
        prompt = Prompt.of([ord(agent[0])] * (LENGTH + 1))
        plan = self.strategy.plan(prompt)
        use = Use(agent, self.now, self.now, stop, **facts)
        self.strategy.commit(prompt.head(LENGTH), plan, use)
        self.strategy.check_integrity()
        return plan.reused

    def held(self, agent: str) -> int:
        """Return how many tokens of an agent are stored."""
        prompt = Prompt.of([ord(agent[0])] * (LENGTH + 1))
        return self.strategy.preview(prompt).reused

    def learn(self, stop: str, gap: float) -> None:
        """Let other agents wait as long as this after such answers."""
        for i in range(9):
            for _ in range(2):
                use = Use(f"other {stop} {i}", self.now, self.now, stop)
                self.strategy.eviction.begin(use)
                self.now += gap


def test_an_answer_that_is_followed_late_is_not_kept_for_one_that_is_soon() -> None:
    own = Conversations()
    own.learn("end_turn", 500)
    own.learn("tool_use", 10)
    own.ask("a")
    own.ask("b")
    own.ask("c", stop="end_turn")
    assert (own.held("a"), own.held("b"), own.held("c")) == (LENGTH, LENGTH, 0)


def test_an_answer_that_is_followed_soon_replaces_one_that_is_late() -> None:
    own = Conversations()
    own.learn("end_turn", 500)
    own.learn("tool_use", 10)
    own.ask("a")
    own.ask("b", stop="end_turn")
    own.ask("a")
    own.ask("c")
    assert (own.held("a"), own.held("b"), own.held("c")) == (LENGTH, 0, LENGTH)


@pytest.mark.parametrize(
    "facts",
    [{"side": True}, {"agent": "b/1", "stop": "end_turn"}],
    ids=["side request", "sub-agent that has ended"],
)
def test_what_nothing_goes_on_with_goes_first(facts: dict[str, Any]) -> None:
    own = Conversations()
    own.ask("a")
    own.ask(**{"agent": "b", **facts})
    own.ask("a")
    own.ask("c")
    assert (own.held("a"), own.held("b"), own.held("c")) == (LENGTH, 0, LENGTH)


def test_a_side_request_leaves_the_conversation_where_it_is() -> None:
    own = Conversations()
    own.ask("a")
    own.ask("a", side=True)  # it asks for the same tokens
    own.ask("b")
    own.ask("c", side=True)
    assert (own.held("a"), own.held("b"), own.held("c")) == (LENGTH, LENGTH, 0)


def test_what_its_agent_has_left_goes_first() -> None:
    own = Conversations()
    own.ask("b")
    own.ask("a")
    # The agent of the latest one goes on with another conversation.
    prompt = Prompt.of([7] * LENGTH)
    use = Use("a", own.now, own.now, "tool_use")
    own.strategy.commit(prompt, own.strategy.plan(prompt), use)
    assert (own.held("a"), own.held("b")) == (0, LENGTH)


def test_a_running_request_keeps_what_it_has_stored() -> None:
    own = Conversations()
    own.ask("a", running=True)
    own.ask("b", running=True)
    own.ask("c")
    assert (own.held("a"), own.held("b"), own.held("c")) == (LENGTH, LENGTH, 0)


def test_pinned_entries_go_last() -> None:
    policy, pinned, other = ResidualLife(), Piece(), Piece()
    for number, piece in enumerate((pinned, other)):
        policy.begin(Use(f"a{number}", number, number, "tool_use"))
        policy.touch([piece])
        policy.keep([pinned])
    policy.begin(Use("c", 900, 900, "tool_use"))
    assert policy.choose(lambda piece: True) is other
    policy.discard(other)
    assert policy.choose(lambda piece: True) is pinned
    policy.keep([])  # it is no longer pinned
    newer = Piece()
    policy.begin(Use("d", 901, 901, "tool_use"))
    policy.touch([newer])
    policy.begin(Use("d", 902, 902, "tool_use"))
    assert policy.choose(lambda piece: True) is newer  # left by its agent


@pytest.mark.parametrize(
    "known", [UNKNOWN, Use("a"), Use(t=1.0, ended=2.0, stop="tool_use")]
)
def test_without_times_the_least_recent_goes_first(known: Use) -> None:
    orders = []
    for evict in ("lru", "residual"):
        own = Conversations(evict)
        sizes = []
        for name in "abcabdacbdaabcc":
            prompt = Prompt.of([ord(name)] * (LENGTH + 1))
            plan = own.strategy.plan(prompt)
            own.strategy.commit(prompt.head(LENGTH), plan, known)
            sizes.append(plan.reused)
        orders.append(sizes)
    assert orders[0] == orders[1]
    assert sum(orders[0]) > 0


def test_the_rest_of_a_gap_is_the_median_of_longer_ones() -> None:
    gaps = Gaps()
    for seconds in (1, 2, 3, 10, 20, 30, 40, 50, 60, 70, 80):
        gaps.add(("tool_use", "fast"), seconds)
    assert gaps.rest(("tool_use", "fast"), 0) == 30
    assert gaps.rest(("tool_use", "fast"), 5) == 50 - 5
    # Too few are longer: it is expected to double, as of a kind that is not known.
    assert gaps.rest(("tool_use", "fast"), 15) == 15
    assert gaps.rest(("tool_use", "slow", "Bash"), 5) == 50 - 5
    assert gaps.rest(("other",), 5) == 50 - 5


def test_what_was_learned_survives_and_is_bounded() -> None:
    gaps = Gaps()
    for number in range(2000):
        gaps.add(("tool_use", str(number % 3)), number / 7)
    kept = json.loads(json.dumps(gaps.to_dict()))
    assert max(map(len, kept.values())) == 500
    again = Gaps.of(kept)
    assert again.to_dict() == kept
    for elapsed in (0, 100, 280):
        assert again.rest(("tool_use", "1"), elapsed) == pytest.approx(
            gaps.rest(("tool_use", "1"), elapsed), abs=0.01
        )


def test_policies_that_hear_the_same_choose_the_same() -> None:
    chosen = []
    for _ in range(2):
        own = Conversations()
        chosen.append([own.ask("abcde"[i * i % 5], 1 + i % 7) for i in range(60)])
    assert chosen[0] == chosen[1]
