"""Calls as tags, streamed: the input equals that of mlx-lm's own parser."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.decoding import (
    CallEnd,
    CallInput,
    CallStart,
    Decoder,
    Grammar,
    Text,
)
from mlxlab.decoding.calls import MALFORMED
from tests.support.answers import (
    FRAGMENTS,
    XML,
    Chunks,
    cuts,
    decode,
    decode_chunks,
    xml_call,
)

SCHEMAS: list[Any] = [
    *({"type": kind} for kind in ("string", "integer", "number", "boolean")),
    *({"type": kind} for kind in ("array", "object", "enum", "null", ["string"])),
    *({}, {"enum": ["a"]}, {"anyOf": []}, True),
]
VALUES = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=4).map("".join),
    st.sampled_from(["null", "NULL", "null\n", "nul", "true", "1", "1.5", "1e3", ""]),
    st.sampled_from(
        ["[1, 2]", '{"a": "\\ud800"}', "(1, 2)", "{1}", "inf", "\n\n", "\na\n"]
    ),
).filter(lambda value: "</parameter>" not in value)
PARAMETERS = st.dictionaries(st.sampled_from(["a", "b", "ü"]), VALUES, max_size=3)


def tool(properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def parsed(text: str, tools: list[Any]) -> Any:
    """Return mlx-lm's result if it has JSON, else None."""
    body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    try:
        arguments = XML.parse(body, tools)["arguments"]
        written = json.dumps(arguments, allow_nan=False, ensure_ascii=False)
        written.encode()
        return json.loads(written)
    except Exception:  # it raises any type of exception
        return None


@given(
    st.data(),
    PARAMETERS,
    st.dictionaries(st.sampled_from(["a", "b", "ü"]), st.sampled_from(SCHEMAS)),
)
def test_input_is_what_mlx_lm_parses(
    data: st.DataObject, parameters: dict[str, str], properties: dict[str, Any]
) -> None:
    tools, text = [tool(properties)], xml_call("f", parameters)
    events = decode_chunks(data.draw(cuts(text.encode())), XML, tools=tools)
    expected = parsed(text, tools)
    start, given = events[:2]
    assert start == CallStart("f")
    assert isinstance(given, CallInput)
    if expected is None:
        assert json.loads(given.json)[MALFORMED] is True
        assert events[2:] == [CallEnd(complete=False), Text(text)]
    else:
        assert json.loads(given.json) == expected
        assert events[2:] == [CallEnd(complete=True)]


@given(PARAMETERS, st.data())
def test_a_call_cut_off_anywhere_is_closed_and_shown(
    parameters: dict[str, str], data: st.DataObject
) -> None:
    whole = xml_call("f", parameters)
    text = whole[: data.draw(st.integers(len("<tool_call>"), len(whole) - 1))]
    events = decode(text, XML)
    assert events[-1] == Text(text)
    if len(events) > 1:
        _, given, end, _ = events
        assert end == CallEnd(complete=False)
        assert isinstance(given, CallInput)
        assert json.loads(given.json)[MALFORMED] is True


def test_strings_are_given_while_they_are_written() -> None:
    text = xml_call("f", {"a": 'x"y\n', "n": "12"})
    grammar = Grammar(lambda: Chunks([c.encode() for c in text]), calls=XML)
    tools = [tool({"a": {"type": "string"}, "n": {"type": "integer"}})]
    decoder = Decoder(grammar, thinking=False, tools=tools)
    events = [event for i in range(len(text)) for event in decoder.feed(i)]
    assert events == [
        CallStart("f"),
        *map(CallInput, ['{"a": "x', '\\"', "y", "\\n", '"', ', "n": 12', "}"]),
        CallEnd(complete=True),
    ]


@pytest.mark.parametrize(
    "body",
    [
        *("", "garbage", "<function=", "<function=f", "<function=f<", "<function=>"),
        *("<function=a b>", "<func f>", "<function=\nf>"),
    ],
)
def test_what_never_had_a_name_is_text(body: str) -> None:
    text = f"a\n<tool_call>\n{body}</tool_call>\nb"
    assert decode(text, XML) == [Text(text)]


@pytest.mark.parametrize(
    ("body", "closed"),
    [
        ("<function=f>\n", {}),
        ("<function=f>\ntext</function>\n", {}),
        ("<function=f>\n<parameter=a>\nx\n</parameter>\n", {"a": "x"}),
        ("<function=f>\n<parameter=>\nx\n</parameter>\n</function>\n", {}),
        ("<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n}", {"a": "x"}),
    ],
)
def test_what_is_malformed_is_marked_and_shown(body: str, closed: Any) -> None:
    text = f"<tool_call>\n{body}</tool_call>"
    start, given, end, shown = decode(text, XML)
    assert (start, end, shown) == (CallStart("f"), CallEnd(complete=False), Text(text))
    assert isinstance(given, CallInput)
    assert json.loads(given.json) == {**closed, MALFORMED: True}


def test_closing_tags_of_the_call_are_content_inside_a_value() -> None:
    value = "</function>\n</tool_call>"
    _, given, end = decode(xml_call("f", {"a": value}), XML)
    assert end == CallEnd(complete=True)
    assert isinstance(given, CallInput)
    assert json.loads(given.json) == {"a": value}
