from __future__ import annotations

from dataclasses import replace

from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.strategies import Plan, parse_strategy
from tests.support.edited import message, request, system, text, tool
from tests.support.ledger import Ledger, Request

TOOLS = [tool(500 + 100 * i, i) for i in range(6)]
END = message(200, 90)


def after(*requests: Request, spec: str = "segmented") -> Plan:
    """The plan for the last request once the others were computed exactly."""
    strategy, ledger = parse_strategy(spec), Ledger(block=64)
    for earlier in requests[:-1]:
        ledger.compute(strategy, earlier)
    return ledger.exchange(strategy, requests[-1])[0]


def moved(plan: Plan) -> list[tuple[int, int, int]]:
    """Target, shift and tokens of each run."""
    runs: list[tuple[int, int, int]] = []
    stop = -1
    for span in plan.spans:
        if span.moved and span.target == stop and span.shift == runs[-1][1]:
            target, shift, length = runs.pop()
            runs.append((target, shift, length + span.length))
        elif span.moved:
            runs.append((span.target, span.shift, span.length))
        stop = span.target + span.length
    return runs


def test_a_changed_header_costs_little_of_what_follows() -> None:
    body = [system(3000, 1), *(tool(700, i) for i in range(2, 16)), message(2200, 20)]
    asked = request(message(17, 22), *body, END)
    plan = after(request(message(10, 21), *body, END), asked)
    assert len(asked.ids) > 15_000
    assert plan.reused >= 0.95 * len(asked.ids)
    assert {span.shift for span in plan.spans} == {7}
    assert next(plan.gaps) == (0, 2 + 17 + 2 + 32)


def test_tools_are_found_in_any_order() -> None:
    old = request(system(638, 80), *TOOLS, END)
    new = request(system(638, 80), *TOOLS[3:], *TOOLS[:3], END)
    plan = after(old, new, spec="segmented:shift=0")
    # Each half is one run, with the template's tokens within and behind it.
    first, second = 2700 + 3 * 2, 1800 + 3 * 2
    assert moved(plan) == [
        (642 + 32, -second, first - 32),
        (642 + first + 32, first, second - 32),
    ]
    # The second half went further than a run may by default.
    assert moved(after(old, new)) == [(642 + 32, -second, first - 32)]


def test_of_several_places_the_one_that_continues_the_run_is_taken() -> None:
    shared, other = message(300, 1), message(700, 2)
    # ``shared`` stands nearer to where it is needed in the second sequence.
    plan = after(
        request(system(70, 3), other, shared, END),
        request(system(781, 4), shared, END),
        request(system(80, 5), other, shared, END),
    )
    assert [(shift, length) for _, shift, length in moved(plan)] == [
        (10, 700 + 2 + 300 + 2 + 200 - 32 - 64)
    ]


def test_of_several_places_the_nearest_is_taken() -> None:
    unit = message(600, 1)
    new = request(system(400, 4), unit, message(99, 5))
    near, far = request(system(390, 2), unit, END), request(system(99, 3), unit, END)
    for earlier in ((near, far), (far, near)):
        plan = after(*earlier, new, spec="segmented:governing=0,rewritten=0")
        assert [shift for _, shift, _ in moved(plan)] == [10]


def test_of_places_as_near_that_of_the_latest_sequence_is_taken() -> None:
    unit = message(600, 1)
    new = request(system(400, 4), unit, message(99, 5))
    more, less = request(system(410, 2), unit, END), request(system(390, 3), unit, END)
    for earlier, shift in (((more, less), 10), ((less, more), -10)):
        plan = after(*earlier, new, spec="segmented:governing=0,rewritten=0")
        assert [found for _, found, _ in moved(plan)] == [shift]


def test_a_unit_with_one_token_changed_is_new() -> None:
    one, two = tool(600, 1), tool(700, 2)
    changed = replace(one, ids=(*one.ids[:300], 7, *one.ids[301:]))
    old = request(system(10, 3), one, two, END)
    new = request(system(12, 4), changed, two, END)
    plan = after(old, new, spec="segmented:rewritten=0")
    assert moved(plan) == [(12 + 2 + 2 + 600 + 2 + 32, 2, 700 + 2 + 200 - 32 - 64)]


def test_new_system_text_governs_what_is_behind_it() -> None:
    tools = [tool(5000, 1), END]
    old = request(system(10, 2), *tools)
    for length, follows in ((1024, True), (1025, False)):
        plan = after(old, request(system(length, 3), *tools))
        assert (plan.moved > 0) == follows
    # The same length of a user's words is no rule.
    assert after(old, request(message(1025, 3), *tools)).moved > 0


def test_template_tokens_start_no_run() -> None:
    old = request(message(50, 1), message(60, 2))
    new = request(message(70, 3), message(80, 4))
    loose = "block=4,run=1,head=0,tail=1,shift=0,rewritten=0,governing=0"
    plan = after(old, new, spec=f"segmented:{loose}")
    assert (plan.moved, plan.best_match) == (0, 0)


def test_segments_of_the_fallback_are_units_too() -> None:
    def coarse(*lengths: int) -> Request:
        ids: list[int] = []
        segments: list[Segment] = []
        for i, length in enumerate(lengths):
            ids += text(length, length)
            start = len(ids) - length
            segments.append(Segment(f"turns[{i}]", Role.UNKNOWN, start, len(ids)))
        return Request(ids, segments=tuple(segments))

    plan = after(coarse(70, 900, 300), coarse(90, 900, 300))
    assert [(shift, length) for _, shift, length in moved(plan)] == [
        (20, 900 + 300 - 32 - 64)
    ]


def test_a_message_of_several_segments_is_one_unit() -> None:
    parts = ["system[0]", "messages[0].text[0]", "messages[0].text[1]"]

    def prompt(header: int, *bodies: int) -> Prompt:
        ids: list[int] = []
        segments: list[Segment] = []
        for label, length in zip(parts, (header, *bodies), strict=True):
            ids += text(length, length)
            start = len(ids) - length
            segments.append(Segment(label, Role.USER, start, len(ids)))
        return Prompt(Prompt.of(ids).tokens, tuple(segments))

    strategy = parse_strategy("segmented")
    old = prompt(70, 600, 500)
    strategy.commit(old, Plan(len(old)))
    assert strategy.plan(prompt(80, 600, 500)).moved > 0
    assert strategy.plan(prompt(80, 600, 501)).moved == 0
