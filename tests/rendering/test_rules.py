"""Rules: each removes one cause of change, and only when it is in force."""

from copy import deepcopy
from typing import Any

import pytest

from mlxlab.errors import RuleError
from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.messages import parse_request
from mlxlab.rendering.rules import RULES, canonicalize, parse_rules
from tests.support import wire

ALL = tuple(RULES)


def canonical(body: dict[str, Any], rules: tuple[str, ...] = ALL) -> Conversation:
    return canonicalize(parse_request(body), rules)


def without(rule: str) -> tuple[str, ...]:
    return tuple(name for name in ALL if name != rule)


def referencing_body() -> dict[str, Any]:
    reference = {"type": "tool_reference", "tool_name": "Fetch"}
    body = wire.session(2)[1][0]
    body["messages"][-1]["content"][0]["content"] = [reference]
    return body


def test_attribution_differs_by_session_unless_dropped() -> None:
    a, b = wire.first_body(suffix="a1b"), wire.first_body(suffix="9ff")
    assert canonical(a) == canonical(b)
    kept = without("drop-attribution")
    assert canonical(a, kept) != canonical(b, kept)
    assert canonical(a, kept).system[0].label == "attribution"


def test_list_and_string_form_are_the_same() -> None:
    a, b = wire.first_body(), wire.first_body()
    b["messages"][1]["content"] = wire.ENVIRONMENT
    assert canonical(a) == canonical(b)


def test_cache_control_on_a_tool_is_rendered_unless_ignored() -> None:
    a, b = wire.first_body(), wire.first_body()
    b["tools"][0]["cache_control"] = wire.MARKER
    assert canonical(a) == canonical(b)
    literal = without("plain-content")
    assert canonical(a, literal) != canonical(b, literal)


def test_blocks_of_one_message_are_set_apart_unless_literal() -> None:
    body = wire.first_body()
    assert canonical(body).separator == "\n"
    assert canonical(body, without("plain-content")).separator == ""


def test_inline_system_keeps_its_place_unless_hoisted() -> None:
    rules = without("environment-first")
    kept = canonical(wire.first_body(), rules)
    assert [turn.role for turn in kept.turns] == ["user", "system"]
    hoisted = canonical(wire.first_body(), ())
    assert [turn.role for turn in hoisted.turns] == ["user"]
    assert hoisted.system[-1].text == wire.ENVIRONMENT


def test_environment_goes_first_but_later_system_messages_stay() -> None:
    body = wire.session(2)[1][0]
    body["messages"].append({"role": "system", "content": "A nudge."})
    roles = [turn.role for turn in canonical(body).turns]
    assert roles == ["system", "user", "assistant", "tool", "system"]
    del body["messages"][1]
    roles = [turn.role for turn in canonical(body).turns]
    assert roles == ["user", "assistant", "tool", "system"]


def test_deferred_tool_is_rendered_at_its_reference() -> None:
    conversation = canonical(referencing_body())
    assert [tool.name for tool in conversation.tools] == ["Bash", "Read"]
    assert '"name": "Fetch"' in conversation.turns[-1].parts[0].text
    literal = canonical(referencing_body(), without("deferred-tools"))
    assert [tool.name for tool in literal.tools] == ["Bash", "Fetch", "Read"]
    assert literal.turns[-1].parts[0].text == "Fetch"


def test_blocks_out_of_the_templates_order_start_a_new_turn() -> None:
    body = wire.first_body()
    reply = wire.answer(thinking="Hm.")["content"]
    body["messages"].append({"role": "assistant", "content": [*reply, *reply]})
    turns = canonical(body).turns[-2:]
    assert [len(turn.calls) for turn in turns] == [1, 1]
    assert all(turn.thinking and turn.thinking.text == "Hm." for turn in turns)


def test_text_between_tool_results_stays_between() -> None:
    body = wire.session(2)[1][0]
    result = body["messages"][-1]["content"][0]
    note = {"type": "text", "text": "by the way"}
    body["messages"][-1]["content"] = [result, note, deepcopy(result)]
    roles = [turn.role for turn in canonical(body).turns[-3:]]
    assert roles == ["tool", "user", "tool"]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("all", ALL),
        ("none", ()),
        ("inline-system,drop-attribution", ("drop-attribution", "inline-system")),
        ("-environment-first", without("environment-first")),
    ],
)
def test_reads_rule_specs(spec: str, names: tuple[str, ...]) -> None:
    assert parse_rules(spec) == names


@pytest.mark.parametrize("spec", ["", "nonsense", "all,none", "-nonsense"])
def test_unknown_rule_is_named_with_the_known_ones(spec: str) -> None:
    with pytest.raises(RuleError, match="known: all, none, drop-attribution"):
        parse_rules(spec)


def test_names_and_exceptions_do_not_mix() -> None:
    with pytest.raises(RuleError, match="not both"):
        parse_rules("inline-system,-plain-content")
