"""Which checkpoints go first under an eviction policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from mlxlab.errors import IntegrityError
from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.specs import StrategySpec
from mlxlab.strategies import Strategy
from mlxlab.strategies.eviction import EVICTIONS, make_eviction
from mlxlab.strategies.plan import Handle
from mlxlab.strategies.sequences.checkpoints import Checkpoints
from mlxlab.strategies.use import Use
from tests.strategies.eviction.test_policies import USES
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC, traffic

LENGTH = 8
CHECKPOINT = 6


class Conversations:
    """Agents whose sequences end with checkpoints, of which two fit."""

    def __init__(self) -> None:
        eviction = make_eviction("residual")
        eviction.recall({"end_turn": [500.0] * 9, "tool_use": [10.0] * 9})
        self.checkpoints = Checkpoints(1, 2, eviction=eviction)
        self.now = 0.0

    def ask(
        self, agent: str, stop: str = "tool_use", *, places: tuple[int, ...] = (LENGTH,)
    ) -> None:
        """Compute an agent's eight tokens; an empty ``stop`` is a request that runs."""
        self.now += 1
        checkpoints, tokens = self.checkpoints, self.tokens(agent)
        assert checkpoints.eviction is not None
        use = Use(agent, self.now, self.now, stop, running=not stop)
        checkpoints.eviction.begin(use)
        found = checkpoints.find(tokens)
        checkpoints.add(tokens, places, found.handle if found else None)
        checkpoints.check(len)

    def tokens(self, agent: str) -> Tokens:
        return Prompt.of([ord(agent[0])] * LENGTH).tokens

    def held(self, agents: str) -> list[int]:
        """Return where each agent resumes, 0 for nowhere."""
        found = (self.checkpoints.find(self.tokens(agent)) for agent in agents)
        return [own.position if own else 0 for own in found]


def test_the_newest_goes_where_it_is_expected_last() -> None:
    own = Conversations()
    for agent, stop in (("a", "tool_use"), ("b", "tool_use"), ("c", "end_turn")):
        own.ask(agent, stop)
    assert own.held("abc") == [LENGTH, LENGTH, 0]


def test_one_that_is_expected_late_makes_room_for_the_newest() -> None:
    own = Conversations()
    for agent, stop in (("a", "tool_use"), ("b", "end_turn"), ("c", "tool_use")):
        own.ask(agent, stop)
    assert own.held("abc") == [LENGTH, 0, LENGTH]


def test_while_its_request_runs_the_newest_stays() -> None:
    own = Conversations()
    own.ask("a")
    own.ask("b")
    own.ask("c", "")  # others may wait for it, however soon they are asked for
    assert own.held("c") == [LENGTH]
    own.ask("d", "end_turn")
    assert own.held("cd") == [LENGTH, 0]


def test_one_that_saves_little_goes_before_the_end_of_a_path() -> None:
    own = Conversations()
    own.ask("a", "end_turn", places=(2, LENGTH))
    own.ask("b")
    assert own.held("ab") == [LENGTH, LENGTH]
    own.ask("c")  # now only ends are left
    assert own.held("abc") == [0, LENGTH, LENGTH]


def test_the_one_in_front_of_an_end_that_went_belongs_to_the_same_agent() -> None:
    own = Conversations()
    own.ask("a", places=(4,))
    own.ask("a", "end_turn")
    own.ask("b")
    assert own.held("ab") == [4, LENGTH]
    own.ask("c", "end_turn")
    # Had it stayed with the earlier turn, it would have gone in place of c's.
    assert own.held("abc") == [4, LENGTH, 0]


def test_a_pinned_checkpoint_goes_last() -> None:
    own = Conversations()
    own.ask("a", "end_turn")
    own.checkpoints.pin([own.tokens("a")])
    own.ask("b")
    own.ask("c")
    assert own.held("a") == [LENGTH]
    own.checkpoints.pin([])
    own.ask("b")
    own.ask("c")
    assert own.held("a") == [0]


def test_a_policy_that_knows_others_is_found() -> None:
    own = Conversations()
    own.ask("a")
    eviction = own.checkpoints.eviction
    assert eviction is not None
    eviction.discard(next(iter(eviction.entries)))
    with pytest.raises(IntegrityError, match="1 are held, 0 of the policy"):
        own.checkpoints.check(len)


def strategy(name: str) -> Strategy:
    spec = StrategySpec.parse(f"paged:capacity=90,evict={name}")
    return spec.make(CacheLayout.plain(2, CHECKPOINT))


def reuse(name: str, requests: list[Request], uses: list[Use]) -> list[Handle | None]:
    """Return what each request resumes from; the ledger checks it."""
    own, ledger = strategy(name), Ledger(block=1)
    exchanges = zip(requests, uses, strict=False)
    return [ledger.exchange(own, *pair)[0].resume for pair in exchanges]


@pytest.mark.parametrize("name", EVICTIONS)
def test_books_hold_and_choices_are_repeated(name: str) -> None:
    @settings(DETERMINISTIC, max_examples=25)
    @given(requests=traffic(pins=True), uses=USES)
    def check(requests: list[Request], uses: list[Use]) -> None:
        assert reuse(name, requests, uses) == reuse(name, requests, uses)

    check()


def test_what_was_learned_elsewhere_reaches_both_policies() -> None:
    own = strategy("residual")
    assert own._resumption is not None
    policy = own._resumption.checkpoints.eviction
    assert policy is not None
    learned = {"end_turn": [5.0] * 9}
    own.recall(learned)
    assert own.eviction.learned() == policy.learned() == learned
