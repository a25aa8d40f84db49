"""When users send requests: what each waits for, and for how long."""

from __future__ import annotations

import pytest

from mlxlab.replay.turns import Schedule, Turn, list_turns, think_only
from mlxlab.traces import Exchange, Response, Trace, load_trace
from mlxlab.traces.schema import Order


def trace(*lines: str, name: str = "trace") -> Trace:
    """Return a trace of lines such as ``s/agent 1.5-3``: who, sent, answered."""
    return Trace(name, tuple(exchange(i, line) for i, line in enumerate(lines)))


def exchange(id: int, line: str, order: Order | None = None) -> Exchange:
    who, when = line.split()
    session, _, agent = who.partition("/")
    sent, _, ended = when.partition("-")
    headers = {"x-claude-code-session-id": session, "x-claude-code-agent-id": agent}
    response = Response(float(ended), 200, 0.1, order=order) if ended else None
    return Exchange(id, float(sent), "POST", "/v1/messages", headers, {}, response)


def waits(*lines: str) -> list[tuple[tuple[int, ...], float]]:
    (turns,) = list_turns([trace(*lines)])
    return [(turn.after, turn.think_s) for turn in turns]


def test_a_turn_comes_after_the_answer_before_it() -> None:
    assert waits("s 10-12", "s 15-16", "s 16.5-18") == [
        ((), 0.0),
        ((0,), 3.0),
        ((1,), 0.5),
    ]


def test_without_an_end_thinking_begins_with_the_request() -> None:
    assert waits("s 10", "s 15-16") == [((), 0.0), ((0,), 5.0)]
    assert waits("s 10", "s 10", "s 12") == [((), 0.0), ((0,), 0.0), ((1,), 2.0)]


def test_subagents_follow_the_main_loop_and_go_on_by_themselves() -> None:
    found = waits(
        "s 0-2",
        "s/a 3-5",
        "s/b 3.5-4",
        "s/b 6-9",  # follows its own answer, not that of the other
        "s/a 5.5-8",
        "s 10-11",  # follows the last answers of both
        "s 12-13",
    )
    assert found == [
        ((), 0.0),
        ((0,), 1.0),
        ((0,), 1.5),
        ((2,), 2.0),
        ((1,), 0.5),
        ((0, 3, 4), 1.0),
        ((5,), 1.0),
    ]


def test_the_main_loop_goes_on_beside_subagents() -> None:
    found = waits("s 0-1", "s/a 2-4", "s 3-5", "s/a 6-8", "s 7-9", "s 10-11")
    # The agent's answer at 4 is not its last one: the loop does not wait for it.
    assert found[2:] == [((0,), 2.0), ((1,), 2.0), ((2,), 2.0), ((3, 4), 1.0)]


def test_requests_that_overlapped_may_overlap() -> None:
    # A side request comes while the first answer runs.
    found = waits("s 10-14", "s 11-12", "s 13-15", "s 16-17")
    assert found == [((), 0.0), ((), 1.0), ((1,), 1.0), ((0, 2), 1.0)]


def test_a_session_follows_those_before_it() -> None:
    found = waits("s 0-2", "t 1-3", "u 4-5", "u 6-7")
    assert found == [((), 0.0), ((), 1.0), ((0, 1), 1.0), ((2,), 1.0)]


def test_numbers_count_the_requests_of_all_traces() -> None:
    two = list_turns([trace("s 0-1", "s 2-3"), trace("s 5-6", "s 7-8")])
    assert two == [
        [Turn(0, (), 0), Turn(1, (0,), 1)],
        [Turn(2, (), 0), Turn(3, (2,), 1)],
    ]


def test_what_was_never_planned_has_no_turn() -> None:
    order = Order(planned=0)
    recorded = [
        exchange(0, "s 0-1", order),
        exchange(1, "s 2-3"),
        exchange(2, "s 5-6", order),
    ]
    (turns,) = list_turns([Trace("refused", tuple(recorded))])
    assert turns == [Turn(0, (), 0), Turn(2, (0,), 4)]


@pytest.mark.parametrize("name", ["subagents", "compact", "sessions"])
def test_each_waits_for_what_its_agent_had_heard(name: str) -> None:
    recorded = load_trace(name)
    exchanges = recorded.inference
    (turns,) = list_turns([recorded])
    known: list[set[int]] = []
    for turn in turns:
        direct = set(turn.after)
        known.append(direct.union(*(known[i] for i in direct)))
        own = exchanges[turn.number]
        for earlier in turns[: turn.number]:
            other = exchanges[earlier.number]
            assert other.response is not None
            if (other.session, other.agent) == (own.session, own.agent):
                heard = other.response.t <= own.t
                assert heard == (earlier.number in known[turn.number])


def replay(schedule: Schedule, answer_s: float) -> list[tuple[float, int]]:
    """Answer each request in the same time, as if none waited for another."""
    sent: list[tuple[float, int]] = []
    running: list[tuple[float, int]] = []
    schedule.start(0.0)
    while running or schedule.next_due is not None:
        due = schedule.next_due
        if running and (due is None or running[0][0] <= due):
            ended, number = running.pop(0)
            schedule.end(number, ended)
        else:
            assert due is not None
            for own in schedule.take(due):
                sent.append(own)
                running.append((own[0] + answer_s, own[1]))
    return sent


TWO = ("s 0-1", "s 3-4")


def test_each_user_takes_the_next_trace_when_its_own_has_ended() -> None:
    turns = list_turns([trace(*TWO), trace("s 0-1"), trace(*TWO), Trace("empty", ())])
    assert replay(Schedule(turns, 1), 10) == [
        (0, 0),
        (12, 1),
        (22, 2),
        (32, 3),
        (44, 4),
    ]
    assert replay(Schedule(turns, 2), 10) == [(0, 0), (0, 2), (10, 3), (12, 1), (22, 4)]
    assert replay(Schedule(turns, 9), 10) == [(0, 0), (0, 2), (0, 3), (12, 1), (12, 4)]


def test_users_beyond_the_traces_cost_nothing() -> None:
    turns = list_turns([trace(*TWO)])
    assert replay(Schedule(turns, 10**12), 10) == replay(Schedule(turns, 1), 10)


def test_think_times_can_be_shortened() -> None:
    turns = list_turns([trace(*TWO)])
    assert replay(Schedule(turns, 1, 0.0), 10) == [(0, 0), (10, 1)]
    assert replay(Schedule(turns, 1, 0.25), 10) == [(0, 0), (10.5, 1)]


def test_a_trace_has_ended_with_its_last_answer() -> None:
    turns = list_turns([trace("s 0-1", "s/a 2-3", "s/b 2-9"), trace("s 0-1")])
    assert replay(Schedule(turns, 1), 4) == [(0, 0), (5, 1), (5, 2), (9, 3)]


def test_thinking_alone_takes_its_time() -> None:
    turns = list_turns([trace("s 0-1", "s 3-4", "s 4.5-9"), trace("s 5-6", "s 7-8")])
    assert think_only(Schedule(turns, 1)) == 3.5
    assert think_only(Schedule(turns, 2)) == 2.5
    assert think_only(Schedule(turns, 2, 0.0)) == 0
