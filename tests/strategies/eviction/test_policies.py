"""What all eviction policies promise, and the rule of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxlab.strategies.eviction import EVICTIONS, Eviction, make_eviction
from mlxlab.strategies.paged import Paged
from mlxlab.strategies.use import Use
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC, traffic

every_policy = pytest.mark.parametrize("name", EVICTIONS)

USES = st.lists(
    st.builds(
        Use,
        agent=st.sampled_from(["", "a", "b", "a/1"]),
        t=st.floats(0, 100),
        ended=st.none(),
        stop=st.sampled_from(["", "tool_use", "end_turn"]),
        tools=st.sampled_from([(), ("Read",), ("Bash", "Read")]),
        side=st.booleans(),
        running=st.booleans(),
    ),
    min_size=12,
    max_size=12,
)


@dataclass(eq=False)
class Piece:
    """Stored positions without a tree: each may go."""

    name: str
    start: int = 0
    stop: int = 10


class Shelf:
    """A policy, and the pieces that it was given."""

    def __init__(self, name: str) -> None:
        self.policy: Eviction = make_eviction(name)
        self.policy.recall({})
        self.pieces: dict[str, Piece] = {}
        self.now = 0.0

    def use(
        self, names: str, agent: str = "a", after: float = 1.0, **facts: Any
    ) -> None:
        """Let one request use each piece, as a sequence of its own."""
        for name in names:
            self.now += after
            self.policy.begin(Use(agent, self.now, self.now, **facts))
            self.policy.touch([self.pieces.setdefault(name, Piece(name))])

    def next(self, among: str = "") -> str:
        """Return which piece goes now."""
        return str(self.policy.choose(lambda p: not among or p.name in among).name)

    def drop(self, among: str = "") -> str:
        """Let a piece go in a commit that uses none; return which."""
        self.policy.begin(Use("nobody", self.now, self.now))
        name = self.next(among)
        self.policy.discard(self.pieces.pop(name))
        return name


@every_policy
def test_a_piece_that_may_go_is_chosen_and_pinned_ones_go_last(name: str) -> None:
    shelf = Shelf(name)
    shelf.use("abcd")
    assert shelf.next("c") == "c"
    for _ in range(2):  # what is kept is kept from the next commit on
        shelf.policy.keep([shelf.pieces["a"], shelf.pieces["b"]])
        shelf.policy.begin(Use("x", shelf.now, shelf.now))
    assert {shelf.next("abc"), shelf.next("abd")} == {"c", "d"}
    assert shelf.next("ab") in "ab"


@every_policy
def test_books_follow_touch_split_and_discard(name: str) -> None:
    shelf = Shelf(name)
    shelf.use("ab")
    first, head = shelf.pieces["a"], Piece("head", 0, 4)
    first.start = 4
    shelf.policy.begin(Use("a", 9.0, 9.0))
    shelf.policy.split(first, head)
    shelf.policy.touch([head])
    assert set(shelf.policy.entries) == {first, head, shelf.pieces["b"]}
    shelf.policy.discard(first)
    assert set(shelf.policy.entries) == {head, shelf.pieces["b"]}
    assert shelf.policy.choose(lambda piece: piece is head) is head


def reuse(name: str, requests: list[Request], uses: list[Use]) -> list[int]:
    """Return what each request reuses of a small pool; the ledger checks it."""
    strategy = Paged(block=2, capacity=30, evict=name)
    ledger = Ledger(lambda own: own.tokens <= 30, block=2)
    exchanges = zip(requests, uses, strict=False)
    return [ledger.exchange(strategy, *pair)[0].reused for pair in exchanges]


@every_policy
def test_trees_stay_whole_and_choices_are_repeated(name: str) -> None:
    @settings(DETERMINISTIC, max_examples=25)
    @given(requests=traffic(pins=True), uses=USES)
    def check(requests: list[Request], uses: list[Use]) -> None:
        assert reuse(name, requests, uses) == reuse(name, requests, uses)

    check()


@pytest.mark.parametrize("name", [name for name in EVICTIONS if name != "residual"])
def test_what_was_just_used_goes_after_all_others(name: str) -> None:
    shelf = Shelf(name)
    shelf.use("aaaaab")
    assert shelf.next() == "a"


def test_slru_spares_what_two_requests_used() -> None:
    shelf = Shelf("slru")
    shelf.use("aabbcd")
    assert [shelf.drop() for _ in "abcd"] == ["c", "d", "a", "b"]


def test_s3fifo_moves_what_is_used_again_and_knows_ghosts() -> None:
    shelf = Shelf("s3fifo")
    shelf.use("aaabbc")
    assert shelf.drop() == "b"  # used again only once: not moved, as a is
    shelf.pieces["b"] = Piece("b", start=5)  # has no ghost
    shelf.pieces["d"] = Piece("d")  # has one: as the first b was
    shelf.use("db")
    assert [shelf.drop(), shelf.drop()] == ["c", "b"]


def test_arc_learns_from_what_returns() -> None:
    shelf = Shelf("arc")
    shelf.use("aab")
    assert shelf.drop() == "b"  # no target yet: those used once go
    shelf.use("b")  # its ghost returns: it is a frequent one, the target grows
    shelf.use("c")
    assert [shelf.drop(), shelf.drop()] == ["a", "b"]


def test_gdsf_forgets_frequency_with_age() -> None:
    shelf = Shelf("gdsf")
    shelf.use("aaab")
    gone = []
    for name in "cdef":
        gone.append(shelf.drop())
        shelf.use(name)
    assert gone == ["b", "c", "a", "d"]  # each new piece begins at a higher age


def test_ttl_pins_while_the_tool_runs() -> None:
    shelf = Shelf("ttl")
    shelf.use("t" * 12, "x", after=10.0, stop="tool_use", tools=("Bash",))
    shelf.use("a", "a", stop="tool_use", tools=("Bash",))
    shelf.use("b", "b", stop="end_turn")
    shelf.use("c", "c", stop="end_turn")
    assert shelf.next("ab") == "b"  # a waits for its tool
    shelf.use("c", "c", after=11.0, stop="end_turn")
    assert shelf.next("ab") == "a"  # its time is over


def test_marconi_spares_what_is_far_behind() -> None:
    shelf = Shelf("marconi")
    shelf.pieces["a"] = Piece("a", 1000, 1010)
    shelf.use("abcdef")
    assert shelf.next() == "b"
    shelf.use("cdefcdef")
    assert [shelf.drop(), shelf.drop()] == ["b", "a"]
