from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.prompt import Prompt, common_prefix
from mlxlab.strategies import Plan, parse_strategy
from mlxlab.strategies.sequences.hashing import window_hashes
from mlxlab.strategies.suffix import _anchors
from tests.support.edited import message, request, system, text, tool
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC

Ids = tuple[int, ...]


def moved(plan: Plan) -> list[tuple[int, int]]:
    """Shift and tokens of each run, runs of one shift taken together."""
    shifts: dict[int, int] = {}
    for span in plan.spans:
        if span.moved:
            shifts[span.shift] = shifts.get(span.shift, 0) + span.length
    return list(shifts.items())


def after(old: Ids, new: Ids, spec: str = "suffix") -> Plan:
    """The plan for ``new`` after ``old``, checked against a store."""
    strategy, ledger = parse_strategy(spec), Ledger(block=64)
    ledger.compute(strategy, Request(list(old)))
    return ledger.exchange(strategy, Request(list(new)))[0]


@pytest.mark.parametrize("length", [10, 23])
def test_a_changed_header_costs_little_of_what_follows(length: int) -> None:
    body = [system(3000, 1), *(tool(700, i) for i in range(2, 16)), message(2200, 20)]
    strategy, ledger = parse_strategy("suffix"), Ledger(block=64)
    ledger.exchange(strategy, request(message(10, 21), *body))
    asked = request(message(length, 22), *body)
    plan, _ = ledger.exchange(strategy, asked)
    assert len(asked.ids) > 15_000
    assert plan.reused >= 0.95 * len(asked.ids)
    assert moved(plan) == [(length - 10, plan.reused)]
    head, tail = plan.gaps
    assert head == (0, 2 + length + 32)
    assert tail[1] - tail[0] <= 64 + 63


def test_what_follows_a_cut_in_history_moves_forward() -> None:
    start, gone, rest = text(2000, 1), text(1500, 2), text(6000, 3)
    plan = after((*start, *gone, *rest), (*start, *rest))
    assert plan.exact_length == 2000 + 32
    assert plan.spans[0].exact
    assert moved(plan) == [(-1500, 6000 - 32 - 64)]
    assert list(plan.gaps) == [(1984, 2032), (7936, 8000)]


def test_a_relocation_beyond_the_limit_is_left() -> None:
    start, gone, rest = text(2000, 1), text(2100, 2), text(9000, 3)
    plan = after((*start, *gone, *rest), (*start, *rest))
    assert plan.moved == 0
    assert plan.best_match == 1984 + 9000 - (13_100 % 64)
    free = after((*start, *gone, *rest), (*start, *rest), "suffix:shift=0")
    assert moved(free) == [(-2100, 9000 - 32 - 64)]


def test_several_edits_give_a_run_between_each() -> None:
    a, b, c, d = (text(2000, seed) for seed in range(4))
    plan = after(
        (*a, *b, *c, *d), (*a, 5, 6, *b, *c[:1000], *c[1100:], *d, *text(64, 9))
    )
    assert moved(plan) == [(2, 3000 - 32), (-98, 900 + 2000 - 32)]


def test_the_longer_of_crossing_runs_is_kept() -> None:
    start, one, two, three = (text(n, n) for n in (640, 700, 900, 500))
    plan = after(
        (*start, *one, *two, *three), (*start, *two, *one, *three, *text(64, 9))
    )
    # ``two`` came to stand before ``one``; in order are ``two`` and ``three``.
    assert moved(plan)[0] == (-700, 900 - 32)
    assert [shift for shift, _ in moved(plan)] == [-700]
    loose = after(
        (*start, *one, *two, *three, *text(64, 8)),
        (*start, *two, *one, *three, *text(64, 9)),
        "suffix:rewritten=0",
    )
    assert moved(loose) == [(-700, 900 - 32), (0, 500 - 32)]


def test_the_cached_sequence_with_most_in_common_is_used() -> None:
    body, more = text(3000, 1), text(2000, 2)
    strategy, ledger = parse_strategy("suffix"), Ledger(block=64)
    for ids in ((7, *body, *more), (8, 8, *body), text(900, 3)):
        ledger.compute(strategy, Request(list(ids)))
    plan, _ = ledger.exchange(strategy, Request([9, 9, 9, *body, *more]))
    assert [shift for shift, _ in moved(plan)] == [2]


def test_among_equals_the_latest_cached_sequence_is_used() -> None:
    body = text(3000, 1)
    strategy, ledger = parse_strategy("suffix"), Ledger(block=64)
    for ids in ((7, *body, *text(300, 2)), (8, 8, *body, *text(300, 3))):
        ledger.compute(strategy, Request(list(ids)))
    plan, _ = ledger.exchange(strategy, Request([9, 9, 9, *body, *text(99, 4)]))
    assert moved(plan) == [(1, 3000 - 32)]


def test_nothing_is_found_in_what_repeats_everywhere() -> None:
    plan = after((1, *[7] * 9000), (2, *[7] * 9000))
    assert plan == Plan(9001)


def test_windows_that_occur_twice_are_no_anchors() -> None:
    def anchors(ours: list[int], theirs: list[int]) -> list[tuple[int, int]]:
        return _anchors(np.array(ours, np.int32), np.array(theirs, np.int32), 2)

    assert anchors([5, 1, 2, 3, 4], [3, 4, 1, 2]) == [(1, 2), (3, 0)]
    assert anchors([5, 1, 2, 3, 4], [3, 4, 1, 2, 1, 2]) == [(3, 0)]
    assert anchors([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]) == [(2, 0)]
    assert anchors([1], [1, 2]) == anchors([1, 2], [1]) == []


@given(
    length=st.integers(0, 150),
    cut=st.tuples(st.integers(0, 150), st.integers(0, 150)),
    new=st.integers(0, 30),
)
@DETERMINISTIC
def test_all_that_is_stored_behind_an_edit_is_found(
    length: int, cut: tuple[int, int], new: int
) -> None:
    ids = list(range(length))
    start, stop = sorted(min(end, length) for end in cut)
    edited = [*ids[:start], *range(900, 900 + new), *ids[stop:], 999]
    strategy = parse_strategy(
        "suffix:block=4,run=7,head=0,tail=1,shift=0,rewritten=0,governing=0"
    )
    strategy.commit(Prompt.of(ids), Plan(max(length, 1)))
    plan = strategy.plan(Prompt.of(edited))
    stored = length // 4 * 4
    exact = common_prefix(Prompt.of(ids[:stored]).tokens, Prompt.of(edited).tokens)
    prefix = exact // 4 * 4
    follows = max(stored - max(stop, exact), 0)
    # A run within a block of the prefix is left, and so is a short one.
    if follows >= 7 and start + new + follows > prefix + 4:
        assert plan.reused == prefix + follows
    else:
        assert plan.reused == prefix


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 8))
@DETERMINISTIC
def testwindow_hashes_are_equal_when_windows_are(ids: list[int], width: int) -> None:
    hashes = window_hashes(np.array(ids, np.int32), width).tolist()
    windows = [tuple(ids[i : i + width]) for i in range(len(ids) - width + 1)]
    assert len(hashes) == len(windows)
    assert len(set(zip(hashes, windows, strict=True))) == len(set(windows))
    assert len(set(hashes)) == len(set(windows))


def test_a_plan_takes_no_time_to_speak_of() -> None:
    body = list(text(20_000, 1))
    strategy = parse_strategy("suffix:sequences=4")
    for seed in range(2, 6):
        ids = [*text(50, seed), *body[:15_000], *text(5000, 10 * seed)]
        strategy.commit(Prompt.of(ids), Plan(len(ids)))
    prompt = Prompt.of([*text(60, 9), *body])
    seconds = []
    for _ in range(5):
        begun = perf_counter()
        plan = strategy.plan(prompt)
        seconds.append(perf_counter() - begun)
    assert plan.moved > 14_000
    assert min(seconds) < 0.05
