"""Context edits clear what was asked for, and nothing else."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.errors import RequestError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt, common_prefix
from mlxlab.rendering.context_edits import CLEARED_RESULT, edit_context
from mlxlab.rendering.messages import (
    MessagesRequest,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    parse_request,
)
from mlxlab.rendering.renderer import Renderer
from mlxlab.server.schema import TokenCountRequest, check_supported
from tests.support import wire

LONG = "a line of a long result\n" * 20
TOOLS = "clear_tool_uses_20250919"
THINKING = "clear_thinking_20251015"


@pytest.fixture(scope="module")
def tiny() -> ModelFolder:
    return find_model()


def size(request: MessagesRequest) -> int:
    """Stands for a renderer: characters in place of tokens."""
    return sum(len(message.model_dump_json()) for message in request.messages)


def never(request: MessagesRequest) -> int:
    raise AssertionError("nothing to clear, yet the prompt was counted")


def asks(messages: list[dict[str, Any]], *edits: object) -> MessagesRequest:
    body = {"model": "m", "messages": messages, "context_management": {"edits": edits}}
    return parse_request(body)


def use(n: int, name: str = "Bash", result: object = LONG) -> list[dict[str, Any]]:
    call = {"type": "tool_use", "id": f"t{n}", "name": name, "input": {"n": n}}
    answer = {"type": "tool_result", "tool_use_id": f"t{n}", "content": result}
    return [
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [answer]},
    ]


def uses(*names: str) -> list[dict[str, Any]]:
    ask = {"role": "user", "content": "Go."}
    return [ask, *(m for n, name in enumerate(names) for m in use(n, name))]


def thought(text: str) -> dict[str, Any]:
    block = {"type": "thinking", "thinking": text, "signature": "c2ln"}
    return {"role": "assistant", "content": [block, {"type": "text", "text": "Yes."}]}


def always(**options: object) -> dict[str, object]:
    return {"type": TOOLS, "trigger": {"type": "tool_uses", "value": 0}, **options}


def cleared(request: MessagesRequest) -> list[bool]:
    """Of each tool result."""
    return [
        block.content == CLEARED_RESULT
        for message in request.messages
        for block in message.blocks
        if isinstance(block, ToolResultBlock)
    ]


def inputs(request: MessagesRequest) -> list[dict[str, Any]]:
    return [
        block.input
        for message in request.messages
        for block in message.blocks
        if isinstance(block, ToolUseBlock)
    ]


def thoughts(request: MessagesRequest) -> list[str]:
    return [
        block.thinking
        for message in request.messages
        for block in message.blocks
        if isinstance(block, ThinkingBlock)
    ]


def test_all_but_the_latest_three_results_are_cleared() -> None:
    request = asks(uses(*["Bash"] * 5), always())
    edited, applied = edit_context(request, size)
    assert cleared(edited) == [True, True, False, False, False]
    assert inputs(edited) == inputs(request)
    saved = size(request) - size(edited)
    assert [edit.wire() for edit in applied] == [
        {"type": TOOLS, "cleared_tool_uses": 2, "cleared_input_tokens": saved}
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep": {"type": "tool_uses", "value": 1}}, [True, True, True, False]),
        ({"keep": {"type": "tool_uses", "value": 0}}, [True] * 4),
        ({"exclude_tools": ["Read"], "keep": {"value": 1}}, [True, False, True, False]),
        ({"exclude_tools": None, "clear_at_least": None}, [True, False, False, False]),
        ({"trigger": {"type": "tool_uses", "value": 3}}, [True, False, False, False]),
        ({"trigger": {"type": "tool_uses", "value": 4}}, [False] * 4),
        ({"trigger": {"type": "input_tokens", "value": 99_999}}, [False] * 4),
        (
            {"clear_at_least": {"type": "input_tokens", "value": 400}},
            [True, False, False, False],
        ),
        ({"clear_at_least": {"type": "input_tokens", "value": 600}}, [False] * 4),
    ],
)
def test_options_decide_which_results_are_cleared(
    options: dict[str, object], expected: list[bool]
) -> None:
    request = asks(uses("Bash", "Read", "Bash", "Read"), always(**options))
    edited, applied = edit_context(request, size)
    assert cleared(edited) == expected
    assert bool(applied) == any(expected)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (False, [{"n": 0}, {"n": 1}, {"n": 2}]),
        (True, [{}, {}, {"n": 2}]),
        (["Read"], [{"n": 0}, {}, {"n": 2}]),
    ],
)
def test_inputs_are_cleared_where_asked(
    chosen: object, expected: list[dict[str, int]]
) -> None:
    edit = always(keep={"value": 1}, clear_tool_inputs=chosen)
    edited, _ = edit_context(asks(uses("Bash", "Read", "Bash"), edit), size)
    assert inputs(edited) == expected
    assert cleared(edited) == [True, True, False]


@pytest.mark.parametrize(("tokens", "applies"), [(100_000, False), (100_001, True)])
def test_by_default_the_prompt_has_to_exceed_100000_tokens(
    tokens: int, applies: bool
) -> None:
    request = asks(uses(*["Bash"] * 4), {"type": TOOLS})
    whole = size(request)
    _, applied = edit_context(request, lambda r: tokens - whole + size(r))
    assert bool(applied) == applies


def test_an_id_that_is_used_again_means_the_latest_call() -> None:
    request = asks([*uses("Bash"), *use(0)], always(keep={"value": 1}))
    edited, _ = edit_context(request, size)
    assert cleared(edited) == [True, False]


def test_a_result_that_defines_a_tool_stays() -> None:
    reference = {"type": "tool_reference", "tool_name": "Fetch"}
    messages = [*uses("Bash"), *use(1, "Search", [reference])]
    edited, applied = edit_context(asks(messages, always(keep={"value": 0})), size)
    assert cleared(edited) == [True, False]
    assert applied[0].number == 1


def test_a_result_without_a_call_stays() -> None:
    request = asks(uses("Bash")[::2], always(keep={"value": 0}))
    assert edit_context(request, never)[1] == ()


@pytest.mark.parametrize("result", ["ok", "x" * len(CLEARED_RESULT)])
def test_what_would_not_shorten_the_prompt_is_left_out(result: str) -> None:
    messages = [{"role": "user", "content": "Go."}, *use(0, result=result)]
    edit = always(keep={"value": 0}, clear_at_least={"value": 0})
    edited, applied = edit_context(asks(messages, edit), size)
    assert not applied
    assert cleared(edited) == [False]


@pytest.mark.parametrize(("missing", "applies"), [(0, True), (1, False)])
def test_an_edit_has_to_clear_at_least_what_is_asked(
    missing: int, applies: bool
) -> None:
    saved = edit_context(asks(uses(*["Bash"] * 4), always()), size)[1][0].input_tokens
    edit = always(clear_at_least={"type": "input_tokens", "value": saved + missing})
    assert bool(edit_context(asks(uses(*["Bash"] * 4), edit), size)[1]) == applies


def conversation() -> list[dict[str, Any]]:
    """Three turns; the second one has a tool loop, the third one no thinking."""
    remind = {"type": "text", "text": "Mind the tests."}
    loop = use(0)
    loop[0]["content"].insert(0, thought("b")["content"][0])
    loop[1]["content"].append(remind)
    return [
        {"role": "user", "content": "One."},
        thought("a"),
        {"role": "user", "content": "Two."},
        *loop,
        {"role": "system", "content": "A nudge."},
        thought("c"),
        {"role": "user", "content": "Three."},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Four."},
    ]


@pytest.mark.parametrize(
    ("options", "left", "number"),
    [
        ({}, ["b", "c"], 1),
        ({"keep": {"type": "thinking_turns", "value": 1}}, ["b", "c"], 1),
        ({"keep": {"type": "thinking_turns", "value": 2}}, ["a", "b", "c"], 0),
        ({"keep": "all"}, ["a", "b", "c"], 0),
        ({"keep": {"type": "all"}}, ["a", "b", "c"], 0),
    ],
)
def test_thinking_of_older_turns_is_cleared(
    options: dict[str, object], left: list[str], number: int
) -> None:
    request = asks(conversation(), {"type": THINKING, **options})
    edited, applied = edit_context(request, size if number else never)
    assert thoughts(edited) == left
    saved = size(request) - size(edited)
    assert [edit.wire() for edit in applied] == [
        {
            "type": THINKING,
            "cleared_thinking_turns": number,
            "cleared_input_tokens": saved,
        }
    ][:number]


def test_redacted_thinking_is_cleared_too() -> None:
    messages = conversation()
    messages[1]["content"][0] = {"type": "redacted_thinking", "data": "eA=="}
    edited, applied = edit_context(asks(messages, {"type": THINKING}), size)
    assert [block.type for block in edited.messages[1].blocks] == ["text"]
    assert applied[0].number == 1


def test_edits_are_made_in_their_order() -> None:
    edits = {"type": THINKING}, always(keep={"value": 0})
    request = asks(conversation(), *edits)
    edited, applied = edit_context(request, size)
    assert [edit.type for edit in applied] == [THINKING, TOOLS]
    saved = sum(edit.input_tokens for edit in applied)
    assert saved == size(request) - size(edited)


def test_the_edited_request_asks_for_no_more_edits() -> None:
    request = asks(uses(*["Bash"] * 5), always())
    before = deepcopy(request)
    edited, _ = edit_context(request, size)
    assert request == before
    assert edit_context(edited, never) == (edited, ())


@given(
    names=st.lists(st.sampled_from(["Bash", "Read", "Edit"]), max_size=8),
    keep=st.integers(0, 4),
    excluded=st.lists(st.sampled_from(["Bash", "Read"]), max_size=2),
)
def test_what_is_cleared_stays_cleared_as_the_history_grows(
    names: list[str], keep: int, excluded: list[str]
) -> None:
    edit = always(keep={"value": keep}, exclude_tools=excluded)
    known: list[bool] = []
    for n in range(len(names) + 1):
        edited, applied = edit_context(asks(uses(*names[:n]), edit), size)
        now = cleared(edited)
        older = [name not in excluded for name in names[: max(0, n - keep)]]
        assert now == older + [False] * (n - len(older))
        assert [a.number for a in applied] == ([sum(older)] if any(older) else [])
        assert all(map(int.__ge__, now, known))
        known = now


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (
            {"type": THINKING, "keep": "none"},
            rf"context_management.edits.0.{THINKING}.keep: .*'all', 'thinking_turns'",
        ),
        (
            {"type": THINKING, "keep": {"type": "thinking_turns", "value": 0}},
            r"keep.thinking_turns.value: .*greater than or equal to 1",
        ),
        (
            {"type": TOOLS, "trigger": {"type": "messages", "value": 1}},
            r"trigger: .*'input_tokens', 'tool_uses'",
        ),
        ({"type": TOOLS, "keep": {"type": "tool_uses", "value": -1}}, "keep.value: "),
        ({"type": TOOLS, "clear_at_least": {"value": "x"}}, "clear_at_least.value: "),
        ({"keep": "all"}, r"context_management.edits.0.other.type: Field required"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(edit: object, where: str) -> None:
    with pytest.raises(RequestError, match=where) as error:
        asks(uses("Bash"), edit)
    assert "\n" not in str(error.value)


def test_an_unknown_edit_is_passed_over_in_a_trace_and_refused_by_the_server() -> None:
    request = asks(uses("Bash"), {"type": "compact_20260112", "instructions": "x"})
    assert edit_context(request, never)[1] == ()
    asked = TokenCountRequest.model_validate(request.model_dump())
    with pytest.raises(RequestError, match=r"edits.0.type: 'compact_20260112' is not"):
        check_supported(asked, "tiny")


def same(a: Prompt, b: Prompt) -> bool:
    return a.segments == b.segments and a.tokens.tolist() == b.tokens.tolist()


def agent_body(*edits: object, turns: int = 6) -> dict[str, Any]:
    body = wire.session(turns)[-1][0]
    return {**body, "context_management": {"edits": edits}}


def test_a_prompt_is_rendered_without_what_was_cleared(tiny: ModelFolder) -> None:
    renderer = Renderer(tiny)
    body = agent_body(always(keep={"value": 1}, clear_tool_inputs=True))
    prompt = renderer.render(body)
    text = str(renderer.tokenizer.decode(prompt.tokens.tolist()))
    assert text.count(CLEARED_RESULT) == 4
    assert "cat part3.py" not in text
    assert "def part4" in text
    assert prompt.exact_segments


def test_what_was_saved_is_the_difference_between_the_prompts(
    tiny: ModelFolder,
) -> None:
    renderer = Renderer(tiny)
    body = agent_body({"type": THINKING}, always(keep={"value": 0}))
    body["messages"] += [
        *use(8),
        thought("That was it."),
        {"role": "user", "content": "Thanks. And now?"},
        thought("What else?"),
        {"role": "user", "content": "Go on."},
    ]
    whole = renderer.render({**body, "context_management": None})
    rendering = renderer.render_request(body)
    prompt, applied = renderer.render(rendering.request), rendering.edits
    assert same(prompt, rendering.prompt)
    assert same(prompt, renderer.render(body))
    assert [edit.number for edit in applied] == [1, 6]
    assert len(whole) - len(prompt) == sum(edit.input_tokens for edit in applied)
    assert all(edit.input_tokens > 0 for edit in applied)


def test_keeping_all_thinking_changes_nothing(tiny: ModelFolder) -> None:
    renderer = Renderer(tiny)
    plain = {**agent_body(), "context_management": None}
    kept = agent_body({"type": THINKING, "keep": "all"})
    assert same(renderer.render(kept), renderer.render(plain))


def test_an_exchange_is_rendered_with_its_edits(tiny: ModelFolder) -> None:
    renderer = Renderer(tiny)
    body = agent_body(always(keep={"value": 1}))
    prompt, answer = renderer.render_exchange(body, wire.answer(9))
    assert same(prompt, renderer.render(body))
    assert "RenderedRequest 9" in renderer.tokenizer.decode(answer.tolist())


def test_only_the_latest_uses_are_computed_again(tiny: ModelFolder) -> None:
    """What was cleared once is cleared alike afterwards, so its prefix is reused."""
    renderer = Renderer(tiny)
    edit = always(keep={"value": 2})
    before, after = (renderer.render(agent_body(edit, turns=n)) for n in (6, 7))
    shared = common_prefix(before.tokens, after.tokens)
    newly_cleared = next(s for s in after.segments if "messages[9]" in s.label)
    assert shared >= newly_cleared.start


def test_what_is_rendered_to_be_counted_is_not_noted() -> None:
    folder = find_model()
    folder.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content | length }}\n{% endfor %}>"
    )
    renderer = Renderer(folder)
    renderer.render(agent_body(always(clear_tool_inputs=True)))
    assert set(renderer.notes.values()) == {1}
