"""Words go from a trace; everything a replay measures stays."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mlxlab.errors import TraceError
from mlxlab.models.folder import find_model
from mlxlab.prompt import common_prefix
from mlxlab.rendering.messages import parse_request
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import RULES, canonicalize
from mlxlab.traces import Exchange, Response, Trace, load_trace, read_trace, write_trace
from mlxlab.traces.anonymize.anonymizer import anonymize
from tests.support import wire
from tests.support.git_status import git_status

SESSION = "02281126-eb86-4b55-a97f-a1372eeac4b3"
AGENT = "a7f3b2c9d1e5"
DEVICE = "07e3047f3dbd00280e1a7f8a18fc3cbf"
SECRETS = (
    "Priscilla found the leak in the northern tank",
    "/home/priscilla/tank/pumps.py",
    "northern_tank_level",
)
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["north", "south"], "default": "north"},
        "level_mm": {"type": "integer", "minimum": 5},
        "pump": {"$ref": "#/$defs/pump"},
    },
    "$defs": {"pump": {"type": "object", "additionalProperties": False}},
    "required": ["type", "level_mm"],
}
CALL: dict[str, Any] = {
    "type": "tool_use",
    "id": "toolu_01AbCdEf",
    "name": "tank_gauge",
    "input": {
        "type": "north",
        "level_mm": 1250,
        "offsets": [0.5, -12.75, 0],
        "path": SECRETS[1],
        "script": 'print("a\\tb")\n# C:\\data\\new\n' * 2,
        "dry_run": True,
        "note": None,
    },
}
RESULT = f"  1→{SECRETS[0]}: <b>naïve</b>\n  2→\\u4f60 你好 { {SECRETS[2]: 7.5} }\n"


def special_session() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A request and its successor with one of everything that needs care."""
    body = wire.first_body(ask=SECRETS[0])
    user = {"device_id": DEVICE, "account_uuid": "", "session_id": SESSION}
    body |= {"metadata": {"user_id": json.dumps(user, separators=(",", ":"))}}
    body |= {"tool_choice": {"type": "tool", "name": "tank_gauge"}}
    tool = {"name": "tank_gauge", "description": SECRETS[0], "input_schema": SCHEMA}
    marker = {"type": "ephemeral", "ttl": "1h"}
    body["tools"].append(tool | {"cache_control": marker})
    thought = {
        "type": "thinking",
        "thinking": "<think> of 3 pumps",
        "signature": "Ab1=",
    }
    answer = {**wire.answer(), "id": "msg_01Xyz", "content": [thought, CALL]}
    return [(body, answer), (wire.next_body(body, answer, RESULT), wire.answer(2))]


def recorded(*sessions: list[tuple[dict[str, Any], dict[str, Any]]]) -> Trace:
    headers = {
        "user-agent": "client/1.2 (priscilla, cli)",
        "anthropic-version": "2023-06-01",
        "x-claude-code-session-id": SESSION,
        "x-claude-code-agent-id": AGENT,
    }
    pairs = deepcopy([pair for session in sessions for pair in session])
    return Trace(
        "demo",
        tuple(
            Exchange(
                *(id, 100.0 + id, "POST", "/v1/messages?beta=true", headers, body),
                Response(100.5 + id, 200, 0.25, answer),
            )
            for id, (body, answer) in enumerate(pairs)
        ),
    )


TRACE = recorded(
    special_session(),
    wire.session(4),
    wire.session(3, ask="Why does the product fail?", suffix="c3d"),
    [({**wire.first_body(), "system": "You give titles.", "tools": []}, wire.answer())],
)
CLEAN = anonymize(TRACE, seed=b"test")


def body_of(trace: Trace, index: int) -> dict[str, Any]:
    body = trace.exchanges[index].body
    assert body is not None
    return body


def answer_of(trace: Trace, index: int) -> dict[str, Any]:
    response = trace.exchanges[index].response
    assert response is not None
    assert response.message is not None
    return response.message


def shape(value: Any) -> Any:
    """Return a JSON value with types in place of strings, lengths in place of ints."""
    match value:
        case dict():
            return [shape(v) for v in value.values()]
        case list():
            return [shape(v) for v in value]
        case str() | float():
            return type(value)
        case int() if not isinstance(value, bool):
            return len(str(value))
    return value


def strings(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for key, item in value.items():
                yield key
                yield from strings(item)
        case list():
            for item in value:
                yield from strings(item)
        case str():
            yield value


@pytest.mark.parametrize(
    "rules",
    [tuple(RULES), (), tuple(r for r in RULES if r != "plain-content")],
    ids=["all", "none", "json-content"],
)
def test_prompts_keep_their_lengths_and_pairwise_common_prefixes(
    rules: tuple[str, ...],
) -> None:
    renderer = Renderer(find_model(), rules)
    before, after = (
        [
            renderer.render_exchange(body_of(trace, i), answer_of(trace, i))
            for i in range(len(trace))
        ]
        for trace in (TRACE, CLEAN)
    )
    for (old, old_answer), (new, new_answer) in zip(before, after, strict=True):
        assert [len(s) for s in new.segments] == [len(s) for s in old.segments]
        assert [s.role for s in new.segments] == [s.role for s in old.segments]
        assert len(new_answer) == len(old_answer)
    matrices = [
        [[common_prefix(a.tokens, b.tokens) for b, _ in side] for a, _ in side]
        for side in (before, after)
    ]
    assert matrices[1] == matrices[0]
    assert len({n for row in matrices[0] for n in row}) > len(TRACE)


COUNTS = (
    "<total_tokens>77 tokens left</total_tokens>\n\nToken usage: 7/84; 77 remaining"
)


def test_rules_find_in_the_result_what_they_look_for() -> None:
    """Under the rules, both sessions begin alike, before and after."""
    sessions = [wire.session(1, ask="Why?"), wire.session(1, ask="How?")]
    for n, session in enumerate(sessions):
        text = f"{wire.ROLE}\n\n{COUNTS.replace('77', f'6{n}')}\n\n{git_status(n)}"
        session[0][0]["system"][-1]["text"] = text
    trace = recorded(*sessions)
    for given in (trace, anonymize(trace, seed=b"test")):
        for rules, alike in ((RULES, True), (("drop-attribution",), False)):
            a, b = (
                canonicalize(parse_request(body_of(given, i)), rules) for i in (0, 1)
            )
            assert (a.system == b.system) == alike
    assert "snapshot" not in str(body_of(given, 0))
    assert "Token usage: 7/84" not in str(body_of(given, 0))


def test_nothing_of_the_words_stays(tmp_path: Path) -> None:
    write_trace(CLEAN, tmp_path / "clean.jsonl")
    written = (tmp_path / "clean.jsonl").read_text().lower()
    sentences = [*SECRETS, wire.ROLE, wire.ENVIRONMENT, "let me look", "demo"]
    ids = [SESSION, AGENT, DEVICE, "01AbCdEf", "01Xyz"]
    for text in [*sentences, *ids, "priscilla", "tank", "gauge", "naïve", "你好"]:
        assert text.lower() not in written


def test_no_string_but_the_apis_own_stays() -> None:
    same = {
        old
        for i in range(len(TRACE))
        for old, new in zip(
            strings(body_of(TRACE, i)), strings(body_of(CLEAN, i)), strict=True
        )
        if old == new and re.search("[A-Za-z]", old)
    }
    api = {
        *("model", "max_tokens", "thinking", "type", "adaptive", "system", "text"),
        *(
            "cache_control",
            "ephemeral",
            "ttl",
            "1h",
            "tools",
            "name",
            "description",
            "tool",
        ),
        *("input_schema", "object", "properties", "string", "required", "messages"),
        *("defer_loading", "role", "user", "content", "assistant", "tool_use", "id"),
        *("input", "tool_result", "tool_use_id", "signature", "claude-test", "integer"),
        *("metadata", "user_id", "tool_choice", "$schema", "enum", "default"),
        *("minimum", "$ref", "$defs", "additionalProperties", SCHEMA["$schema"]),
    }
    assert same == api


def test_shape_times_and_parameters_stay() -> None:
    for old, new in zip(TRACE, CLEAN, strict=True):
        assert (new.id, new.t, new.method, new.path) == (
            old.id,
            old.t,
            old.method,
            old.path,
        )
        assert shape(new.body) == shape(old.body)
        assert new.response is not None
        assert old.response is not None
        assert shape(new.response.message) == shape(old.response.message)
        assert new.response.first_byte_s == old.response.first_byte_s
        for key in ("model", "max_tokens", "thinking"):
            assert (new.body or {})[key] == (old.body or {})[key]


def test_equal_values_stay_equal() -> None:
    answer, history = answer_of(CLEAN, 0), body_of(CLEAN, 1)["messages"]
    assert history[-2]["content"] == answer["content"]
    call = answer["content"][1]
    assert history[-1]["content"][0]["tool_use_id"] == call["id"]
    assert call["id"].startswith("toolu_")
    tool, choice = body_of(CLEAN, 0)["tools"][-1], body_of(CLEAN, 0)["tool_choice"]
    assert call["name"] == tool["name"] == choice["name"]


def test_schemas_name_the_same_properties_as_calls() -> None:
    schema = body_of(CLEAN, 0)["tools"][-1]["input_schema"]
    kind, level, pump = schema["properties"]
    call = answer_of(CLEAN, 0)["content"][1]["input"]
    assert schema["required"] == [kind, level] == list(call)[:2]
    assert schema["$defs"].keys() == {pump}
    assert schema["properties"][pump] == {"$ref": f"#/$defs/{pump}"}
    options = schema["properties"][kind]
    assert options["default"] == options["enum"][0] == call[kind]
    assert options["type"] == "string"
    assert 1000 <= call[level] != CALL["input"]["level_mm"]


def test_sessions_and_agents_stay_apart_under_other_ids() -> None:
    new = CLEAN.exchanges[0]
    user = json.loads(body_of(CLEAN, 0)["metadata"]["user_id"])
    assert list(user) == ["device_id", "account_uuid", "session_id"]
    assert user["session_id"] == new.headers["x-claude-code-session-id"]
    assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", user["session_id"])
    assert user["account_uuid"] == ""
    assert len(new.agent) == len(AGENT)
    assert new.headers["user-agent"] == "client/1.2"
    assert new.headers["anthropic-version"] == "2023-06-01"


def test_a_user_id_of_joined_words_keeps_those_words() -> None:
    body = wire.first_body() | {
        "metadata": {"user_id": f"user_{DEVICE}_session_{SESSION}"}
    }
    clean = anonymize(recorded([(body, wire.answer())]), seed=b"test")
    user = body_of(clean, 0)["metadata"]["user_id"]
    session = clean.exchanges[0].headers["x-claude-code-session-id"]
    assert re.fullmatch(f"user_[0-9a-f]{{32}}_session_{session}", user)


def test_the_attribution_stays_one_and_differs_where_it_differed() -> None:
    first, other = (body_of(CLEAN, i)["system"][0]["text"] for i in (2, 6))
    form = r"x-anthropic-billing-header: cc_version=[\d.]+\w+; cc_entrypoint=[a-zA-Z]+;"
    assert re.fullmatch(form, first)
    assert re.fullmatch(form, other)
    assert first != other
    assert "2.1.330" not in first


def test_an_unknown_path_and_an_error_lose_their_words() -> None:
    error = {"type": "error", "error": {"type": "api_error", "message": SECRETS[0]}}
    exchange = Exchange(
        *(0, 1.0, "GET", "/tank/priscilla", {}, None), Response(2.0, 500, 0.1, error)
    )
    clean = anonymize(Trace("demo", (exchange,)))
    assert "priscilla" not in clean.exchanges[0].path
    assert answer_of(clean, 0)["error"]["type"] == "api_error"
    assert "Priscilla" not in answer_of(clean, 0)["error"]["message"]


def test_the_trace_says_so_and_drops_its_notes(tmp_path: Path) -> None:
    header = TRACE.header.model_copy(update={"project": "tank"})
    clean = anonymize(Trace("demo", TRACE.exchanges, header))
    write_trace(clean, tmp_path / "clean.jsonl")
    assert read_trace(tmp_path / "clean.jsonl").header.notes == {"anonymized": True}


def test_keys_differ_unless_given() -> None:
    assert anonymize(TRACE, seed=b"test").digest == CLEAN.digest
    assert anonymize(TRACE, seed=b"other").digest != CLEAN.digest
    assert anonymize(TRACE).digest != anonymize(TRACE).digest


def test_the_input_is_left_as_it_is() -> None:
    before = TRACE.digest
    fresh = Trace(TRACE.name, TRACE.exchanges, TRACE.header)
    anonymize(fresh)
    assert Trace(TRACE.name, TRACE.exchanges, TRACE.header).digest == before


def test_blocks_that_were_one_object_stay_one(tmp_path: Path) -> None:
    write_trace(TRACE, tmp_path / "trace.jsonl")
    clean = anonymize(read_trace(tmp_path / "trace.jsonl"))
    first, second = (body_of(clean, i)["messages"] for i in (3, 4))
    assert first[0] is second[0]


def test_a_body_nested_too_deeply_is_said() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    exchange = Exchange(0, 1.0, "POST", "/v1/messages", {}, {"messages": deep})
    with pytest.raises(TraceError, match="nested too deeply"):
        anonymize(Trace("demo", (exchange,)))


def test_a_trace_is_given_as_an_object_a_path_or_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = load_trace("deferred")
    write_trace(trace, tmp_path / "deferred.jsonl")
    made = [
        anonymize(given, seed=b"k", progress=False)
        for given in (trace, tmp_path / "deferred.jsonl", "deferred")
    ]
    assert len({one.digest for one in made}) == 1
    assert made[0].digest != trace.digest
    assert not capsys.readouterr().err
    anonymize(trace)
    assert "replacing words" in capsys.readouterr().err
    with pytest.raises(TraceError, match="no trace 'nope'"):
        anonymize("nope")
