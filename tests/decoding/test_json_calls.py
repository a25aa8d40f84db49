"""Calls as JSON: the text that is streamed, repaired and refused."""

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
    Event,
    Grammar,
    Text,
)
from mlxlab.decoding.calls import MALFORMED
from tests.support.answers import (
    ARGUMENTS,
    JSON,
    NAME,
    Chunks,
    cuts,
    decode,
    decode_chunks,
    json_call,
)

STYLES: list[dict[str, Any]] = [
    {},
    {"ensure_ascii": False},
    {"indent": 2},
    {"separators": (",", ":")},
]


def call(written: str) -> str:
    return f"<tool_call>\n{written}\n</tool_call>"


def inputs(events: list[Event]) -> list[Any]:
    return [json.loads(e.json) for e in events if isinstance(e, CallInput)]


@given(st.data(), NAME, ARGUMENTS, st.sampled_from(STYLES))
def test_input_is_let_through_as_written(
    data: st.DataObject, name: str, arguments: dict[str, Any], style: dict[str, Any]
) -> None:
    text = json_call(name, arguments, **style)
    start, given, end = decode_chunks(data.draw(cuts(text.encode())))
    assert start == CallStart(name)
    assert end == CallEnd(complete=True)
    assert isinstance(given, CallInput)
    assert given.json in text
    assert json.loads(given.json) == arguments


@given(NAME, ARGUMENTS, st.data())
def test_a_call_cut_off_anywhere_is_closed_and_shown(
    name: str, arguments: dict[str, Any], data: st.DataObject
) -> None:
    whole = json_call(name, arguments)
    text = whole[: data.draw(st.integers(len("<tool_call>"), len(whole) - 1))]
    events = decode(text)
    assert events[-1] == Text(text)
    if len(events) > 1:
        start, given, end, _ = events
        assert (start, end) == (CallStart(name), CallEnd(complete=False))
        assert isinstance(given, CallInput)
        closed = json.loads(given.json)
        assert closed.pop(MALFORMED) is True
        assert list(closed) == list(arguments)[: len(closed)]
        assert all(closed[key] == arguments[key] for key in list(closed)[:-1])


def test_pieces_are_given_as_soon_as_they_can_be_closed() -> None:
    text = call('{"name": "f", "arguments": {"a": "x\\n", "n": [12, null]}}')
    grammar = Grammar(lambda: Chunks([c.encode() for c in text]), calls=JSON)
    decoder = Decoder(grammar, thinking=False)
    steps = [(c, event) for i, c in enumerate(text) for event in decoder.feed(i)]
    assert steps == [
        ('"', CallStart("f")),
        ("{", CallInput("{")),
        ('"', CallInput('"a": "')),
        ("x", CallInput("x")),
        ("n", CallInput("\\n")),
        ('"', CallInput('"')),
        ("[", CallInput(', "n": [')),
        (",", CallInput("12")),
        ("]", CallInput(", null]")),
        (">", CallInput("}")),
        (">", CallEnd(complete=True)),
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"name": "f"}', {}),
        ('{"name": "f", "arguments": {}}', {}),
        ('{"name": "f", "arguments": { }}', {}),
        ('{"arguments": {"a": 1}, "name": "f"}', {"a": 1}),
        ('{"id": [{"x": "}"}], "name": "f", "arguments": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": {"a": "x\ny\t"}}', {"a": "x\ny\t"}),
        ('{"name": "f", "arguments": {"a": "\\d\\u12 \\\'"}}', {"a": "\\d\\u12 \\'"}),
        ('{"name": "f", "arguments": {"\\d": 1}}', {"\\d": 1}),
        ('{"name": "f", "arguments": {"a": "\\ud83d\\ude00"}}', {"a": "😀"}),
        (
            '{"name": "f", "arguments": {"a": "\\ud83d-\\ude00"}}',
            {"a": "\ufffd-\ufffd"},
        ),
        ('{"name": "f", "arguments": {"a": "\\ud83d"}}', {"a": "\ufffd"}),
        ('{"name": "f", "arguments": {"a": "</tool_call>"}}', {"a": "</tool_call>"}),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', {"a": 2}),
    ],
)
def test_what_is_clear_is_accepted(written: str, expected: Any) -> None:
    events = decode(call(written))
    assert [events[0], events[-1]] == [CallStart("f"), CallEnd(complete=True)]
    assert inputs(events) == [expected]


@pytest.mark.parametrize(
    ("written", "closed"),
    [
        ('{"name": "f", "arguments": {"a": 1}', {"a": 1}),
        ('{"name": "f", "arguments": {"a": {"b": [1, tru', {"a": {"b": [1]}}),
        ('{"name": "f", "arguments": "ls"}', {}),
        ('{"name": "f", "arguments": ["ls"]}', {}),
        ('{"name": "f", "arguments": 5}', {}),
        ('{"name": "f", "arguments": {"a": 1,}}', {"a": 1}),
        ('{"name": "f", "arguments": {"a": 01}}', {}),
        ('{"name": "f", "arguments": {"a": NaN}}', {}),
        ('{"name": "f", "arguments": {"a": 1e999}}', {}),
        (f'{{"name": "f", "arguments": {{"a": {"1" * 5000}}}}}', {}),
        ('{"name": "f", "arguments": {"a": "x" y}}', {"a": "x"}),
        ('{"name": "f", "arguments": {}, "arguments": {}}', {}),
        ('{"name": "f", "arguments": {}, "name": "g"}', {}),
        ('{"name": "f", "arguments": {}}}', {}),
        ('{"name": "f", "arguments": {}} x', {}),
    ],
)
def test_what_is_malformed_is_marked_and_shown(written: str, closed: Any) -> None:
    text = call(written)
    start, given, end, shown = decode(text + "\nafter")
    assert (start, end) == (CallStart("f"), CallEnd(complete=False))
    assert shown == Text(text + "\nafter")
    assert inputs([given]) == [{**closed, MALFORMED: True}]


@pytest.mark.parametrize(
    "written",
    [
        *("", "garbage", "[]", "{}", '{"name": 5}', '{"name": ""}', '{"name"'),
        *('{"arguments": {"a": 1}}', '{"arguments": 5, "name": "f"}', '{"name": "f'),
    ],
)
def test_what_never_had_a_name_is_text(written: str) -> None:
    text = f"a\n{call(written)}\nb"
    assert decode(text) == [Text(text)]


def test_calls_after_a_broken_one_are_read() -> None:
    good = json_call("g", {})
    assert decode(f"use <tool_call> so:\n{good}") == [
        Text("use <tool_call> so:"),
        *decode(good),
    ]
    broken = call('{"name": "f", "arguments": {"a": "x" y}}')
    assert decode(f"{broken}\n{good}") == [*decode(broken), *decode(good)]


def test_what_a_broken_call_quotes_is_not_called() -> None:
    quoted = json_call("rm", {})
    broken = f'<tool_call>\n{{"name": "f", "arguments": {{"a": "x" {quoted}'
    assert CallStart("rm") not in decode(broken)


def test_nesting_without_end_is_malformed() -> None:
    written = '{"name": "f", "arguments": {"a": ' + "[" * 100_000
    _, given, end, _ = decode(call(written))
    assert end == CallEnd(complete=False)
    assert inputs([given])[0][MALFORMED] is True
