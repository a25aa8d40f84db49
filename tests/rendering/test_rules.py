"""Rules: each removes one cause of change, and only when it is in force."""

from copy import deepcopy
from itertools import takewhile
from typing import Any

import pytest

from mlxlab.errors import RuleError
from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.messages import parse_request
from mlxlab.rendering.rules import (
    DEFAULT_RULES,
    RULES,
    Effect,
    canonicalize,
    find_rule,
    label_rules,
    parse_rules,
)
from tests.support import wire
from tests.support.git_status import git_status

ALL = DEFAULT_RULES


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
        ("all,git-status-last", (*ALL, "git-status-last")),
        (
            "all,move:Today is,-plain-content",
            (*without("plain-content"), "move:Today is"),
        ),
        ("drop:Scratch...,inline-system", ("inline-system", "drop:Scratch...")),
    ],
)
def test_reads_rule_specs(spec: str, names: tuple[str, ...]) -> None:
    assert parse_rules(spec) == names
    assert parse_rules(label_rules(names)) == names


@pytest.mark.parametrize("spec", ["", "nonsense", "all,none", "-nonsense"])
def test_unknown_rule_is_named_with_the_known_ones(spec: str) -> None:
    with pytest.raises(RuleError, match="known: all, none, drop-attribution"):
        parse_rules(spec)


def test_names_and_exceptions_do_not_mix() -> None:
    with pytest.raises(RuleError, match="not both"):
        parse_rules("inline-system,-plain-content")


def begins(conversation: Conversation) -> tuple[str, str]:
    """System text and tools, and the messages before the user's."""
    system = "\n".join(part.text for part in conversation.system)
    tools = str([tool.function for tool in conversation.tools])
    first = takewhile(lambda turn: turn.role == "system", conversation.turns)
    return system + tools, "\n".join(p.text for turn in first for p in turn.parts)


def body_with(text: str) -> dict[str, Any]:
    body = wire.first_body()
    body["system"][-1]["text"] = f"{wire.ROLE}\n\n{text}"
    return body


SCRATCH = """# Scratch
Use this folder:
`/tmp/x/{}-07de-42d1-902e-43af5ba1f6ba/scratch`

Nothing else may write there."""
#: What a rule is for, in two sessions.
VOLATILE = {
    "git-status-last": (git_status(0), git_status(2)),
    "session-ids-last": tuple(
        f"{SCRATCH.format(n)}\n\n# Style\nBe brief." for n in ("2ba51eb2", "00000000")
    ),
    "drop-token-counts": tuple(
        f"<total_tokens>{n} tokens left</total_tokens>\n\n"
        f"Token usage: {n}/900; 1 remaining\n\nBe brief."
        for n in (1, 22)
    ),
    "move:Today is": ("Today is Monday.\nBe brief.", "Today is Tuesday.\nBe brief."),
    "drop:Today is": ("Today is Monday.\nBe brief.", "Today is Tuesday.\nBe brief."),
    "move:# Day...": ("# Day\nMonday.\n\n# Style", "# Day\nTuesday.\n\n# Style"),
}


@pytest.mark.parametrize("name", VOLATILE)
def test_what_differs_between_sessions_leaves_the_beginning(name: str) -> None:
    old, new = VOLATILE[name]
    rule = find_rule(name)
    a, b = (canonical(body_with(text), (*ALL, name)) for text in (old, new))
    assert begins(a)[0] == begins(b)[0]
    assert begins(a)[0].startswith(wire.ROLE.rstrip())
    assert rule.settles(f"{wire.ROLE}\n{old}", f"{wire.ROLE}\n{new}")
    assert not rule.settles("Be brief.", "Be long.")
    assert begins(canonical(body_with(old))) != begins(canonical(body_with(new)))
    # Nothing is lost: the lines are behind the environment, unless they are left out.
    moved = begins(a)[1].removeprefix(wire.ENVIRONMENT)
    lines = {line for line in old.splitlines() if line not in begins(a)[0]}
    assert (rule.effect is Effect.MOVED) == bool(moved)
    assert rule.effect is Effect.LEFT_OUT or lines <= set(moved.splitlines())
    assert "Be brief." not in old or "Be brief." in begins(a)[0]


@pytest.mark.parametrize("name", [name for name in VOLATILE if "last" in name])
def test_a_moved_passage_goes_with_later_requests_unchanged(name: str) -> None:
    body = body_with(VOLATILE[name][0])
    later = wire.next_body(body, wire.answer(), "done")
    later["messages"].append({"role": "system", "content": VOLATILE[name][1]})
    rules = (*ALL, name)
    first, second = canonical(body, rules), canonical(later, rules)
    assert second.turns[: len(first.turns)] == first.turns
    # Behind an answer it stays: history must not change.
    assert second.turns[-1].parts[0].text == VOLATILE[name][1]


def test_passages_of_tools_and_of_the_environment_move_too() -> None:
    body = wire.first_body()
    body["tools"][0]["description"] += "\nThe month is May."
    body["messages"][1]["content"] = f"{wire.ENVIRONMENT}\nThe month is June."
    found = canonical(body, (*ALL, "move:The month is"))
    assert found.tools[0].description == wire.TOOLS[0]["description"]
    assert found.turns[0].parts[0].text == wire.ENVIRONMENT
    assert [(p.label, p.text) for p in found.turns[1].parts] == [
        ("tools[0]:Bash:moved", "The month is May."),
        ("messages[1].text[0]:moved", "The month is June."),
    ]
    dropped = canonical(body, (*ALL, "drop:The month is"))
    assert dropped == canonical(wire.first_body())


def test_a_path_with_an_id_in_text_without_headings_takes_its_paragraph() -> None:
    text = SCRATCH.format("2ba51eb2").removeprefix("# Scratch\n")
    found = canonical(body_with(f"{text}\n\nBe brief."), (*ALL, "session-ids-last"))
    assert begins(found)[1].endswith("/scratch`")
    assert found.system[0].text.endswith("write there.\n\nBe brief.")


def test_every_rule_says_what_it_costs() -> None:
    for rule in RULES.values():
        assert rule.place
        assert rule.reason
        moves = rule.name.endswith(("last", "first", "tools"))
        assert (rule.effect is Effect.MOVED) == moves
    assert RULES["git-status-last"].clients == "clients up to 2.1.197"
    assert find_rule("drop:x").effect is Effect.LEFT_OUT


@pytest.mark.parametrize("name", ["move:", "drop: ...", "move:...", "move:a+b"])
def test_a_written_rule_needs_words(name: str) -> None:
    with pytest.raises(RuleError, match="first words of a line"):
        parse_rules(f"all,{name}")
