"""Same events however an answer is cut, nothing lost, white space by the rules."""

import json
from dataclasses import replace
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxlab.decoding import (
    CallEnd,
    CallInput,
    CallStart,
    Decoder,
    Event,
    Grammar,
    Stopped,
    Text,
    Thinking,
    ThinkingEnd,
)
from mlxlab.decoding.calls import CallFormat
from tests.support.answers import (
    ANY_ANSWER,
    FORMATS,
    JSON,
    STRING,
    Chunks,
    cuts,
    decode,
    decode_chunks,
    json_call,
)

STOPS = st.lists(
    st.sampled_from(
        ["STOP", "ST", "OPS", "\n", "\n\n", "d\n", "word", "<tool_call>", "é"]
    ),
    max_size=3,
)
CALL = json_call("f", {})


def without_ids(events: list[Event]) -> list[Event]:
    return [replace(e, tokens=()) if isinstance(e, ThinkingEnd) else e for e in events]


def shown(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Text | Thinking))


def called(events: list[Event]) -> list[Event]:
    return [e for e in events if isinstance(e, CallStart | CallInput | CallEnd)]


def squeeze(text: str) -> str:
    return "".join(text.split())


# However it is cut


@settings(max_examples=1000)
@given(st.data(), ANY_ANSWER, st.sampled_from(FORMATS), st.booleans(), STOPS)
def test_events_do_not_depend_on_tokens(
    data: st.DataObject, text: str, calls: CallFormat, thinking: bool, stop: list[str]
) -> None:
    chunks = data.draw(cuts(text.encode()))
    events = decode_chunks(chunks, calls, thinking=thinking, stop=stop)
    whole = decode(text, calls, thinking=thinking, stop=stop)
    assert without_ids(events) == without_ids(whole)


@given(ANY_ANSWER, st.sampled_from(FORMATS), st.booleans(), STOPS)
def test_events_come_in_an_order_that_clients_can_rely_on(
    text: str, calls: CallFormat, thinking: bool, stop: list[str]
) -> None:
    events = decode(text, calls, thinking=thinking, stop=stop)
    kinds = "".join(_LETTERS[type(event)] for event in events)
    assert _strip(kinds) == ""
    for event in events:
        match event:
            case CallInput(written):
                assert isinstance(json.loads(written), dict)
                written.encode()
            case Text(words):
                assert words.strip()
            case Thinking(words):
                assert words.strip("\r\n") == words


_LETTERS = {
    Thinking: "r",
    ThinkingEnd: "e",
    Text: "t",
    CallStart: "(",
    CallInput: "i",
    CallEnd: ")",
    Stopped: "s",
}


def _strip(kinds: str) -> str:
    """Return the event kinds that are left after the valid order is removed."""
    if "e" in kinds:
        kinds = kinds.removeprefix("r").removeprefix("e")
    return kinds.removesuffix("s").replace("(i)", "").replace("t", "")


@given(ANY_ANSWER, st.sampled_from(FORMATS), st.booleans())
def test_what_is_no_call_and_no_tag_is_shown(
    text: str, calls: CallFormat, thinking: bool
) -> None:
    events = decode(text, calls, thinking=thinking)
    if CallEnd(complete=True) in events:
        return
    visible = text
    if any(isinstance(event, ThinkingEnd) for event in events):
        visible = visible if thinking else visible.lstrip().removeprefix("<think>")
        visible = visible.replace("</think>", "", 1)
    assert squeeze(shown(events)) == squeeze(visible)


@given(ANY_ANSWER, ANY_ANSWER)
def test_a_complete_call_changes_nothing_around_it(before: str, after: str) -> None:
    for text in (before, after):
        if "<tool_call" in text or "</tool" in text or "<think" in text:
            return
    events = decode(f"{before}x\n{CALL}\n{after}y")
    alone = [*decode(f"{before}x"), *called(decode(CALL)), *decode(f"{after}y")]
    assert events == alone


def test_half_a_character_is_marked_only_at_the_end() -> None:
    chunks = [bytes([b]) for b in "a😀".encode()]
    assert decode_chunks(chunks) == [Text("a😀")]
    assert decode_chunks(chunks[:-1]) == [Text("a\ufffd")]
    assert decode_chunks([*chunks[:-1], b"b"]) == [Text("a\ufffdb")]


# Thinking


@given(st.data(), STRING, STRING)
def test_reasoning_then_text_for_any_tokens(
    data: st.DataObject, reasoning: str, text: str
) -> None:
    answer = f"<think>{reasoning}</think>{text}"
    chunks = data.draw(cuts(answer.encode()))
    events = decode_chunks(chunks, calls=None)
    reasoning, text = reasoning.strip("\r\n"), text.lstrip("\r\n")
    expected: list[Event] = [Thinking(reasoning)] if reasoning else []
    expected += [ThinkingEnd(())]
    expected += [Text(text)] if text.strip() else []
    assert without_ids(events) == expected


@pytest.mark.parametrize(
    ("text", "thinking", "events"),
    [
        ("<think>a</think>b", False, "r:a e t:b"),
        ("\n <think>\na\n\n</think>\n\nb", False, "r:a e t:b"),
        ("a</think>b", True, "r:a e t:b"),
        ("<think>a</think>b", True, "r:<think>a e t:b"),
        ("a<think>b</think>c", False, "t:a<think>b</think>c"),
        ("<think>a</think>b<think>c</think>", False, "r:a e t:b<think>c</think>"),
        ("<think>\n\n</think>\n\nb", False, "e t:b"),
        ("<think>a STOP <tool_call>", False, "r:a·STOP·<tool_call> e"),
        ("<think>a\n", False, "r:a e"),
        ("<think>a</thi", False, "r:a</thi e"),
        ("<thin", False, "t:<thin"),
        (" \n", False, ""),
        ("", True, "e"),
    ],
)
def test_reasoning(text: str, thinking: bool, events: str) -> None:
    found = decode(text, thinking=thinking, stop=["STOP"])
    assert " ".join(map(_brief, found)) == events


def _brief(event: Event) -> str:
    letter = _LETTERS[type(event)]
    text = event.text if isinstance(event, Text | Thinking) else ""
    return f"{letter}:{text}".replace(" ", "·") if text else letter


@given(st.data(), STRING, st.booleans())
def test_ids_of_reasoning_are_exact_or_not_given(
    data: st.DataObject, reasoning: str, thinking: bool
) -> None:
    opening = "" if thinking else "<think>"
    answer = f"{opening}{reasoning}</think>"
    blank = "" if thinking else " \n"
    chunks = data.draw(cuts(f"{blank}{answer}b".encode()))
    end = decode_chunks(chunks, thinking=thinking)
    (ids,) = (event.tokens for event in end if isinstance(event, ThinkingEnd))
    edges = {sum(map(len, chunks[:n])) for n in range(len(chunks) + 1)}
    first = len(blank.encode())
    whole = {first, first + len(answer.encode())} <= edges
    assert b"".join(chunks[i] for i in ids) == (answer.encode() if whole else b"")


def test_a_model_without_reasoning_has_no_tags() -> None:
    grammar = Grammar(lambda: Chunks([b"<think>a</think>"]))
    decoder = Decoder(grammar, thinking=True)
    assert decoder.feed(0) + decoder.finish() == [Text("<think>a</think>")]


# Text


@pytest.mark.parametrize(
    ("before", "after", "texts"),
    [
        ("a", "", ["a"]),
        ("a\n", "", ["a"]),
        ("a\n\n", "", ["a\n"]),
        ("a \n", "", ["a "]),
        ("\n\na\n", "\n", ["a"]),
        (" \n", "\n ", []),
        ("", "\n\n b\n", [" b\n"]),
        ("", " \nb", [" \nb"]),
    ],
)
def test_white_space_around_a_call(before: str, after: str, texts: list[str]) -> None:
    events = decode(f"{before}{CALL}{after}")
    assert [e.text for e in events if isinstance(e, Text)] == texts
    assert called(events) == called(decode(CALL))


def test_white_space_between_calls_is_dropped() -> None:
    assert decode(f"{CALL}\n \n{CALL}\n") == decode(CALL) * 2


def test_markers_of_the_template_are_no_text() -> None:
    grammar = Grammar(lambda: Chunks([b"<|a|>b<|a|>c<|a|>"]), markers=("<|a|>",))
    decoder = Decoder(grammar, thinking=False)
    assert decoder.feed(0) + decoder.finish() == [Text("bc")]


# Stop sequences


@given(st.data(), st.text("ab \n", max_size=20).map(lambda t: t.lstrip("\n")))
def test_the_earliest_and_longest_stop_sequence_ends_the_text(
    data: st.DataObject, text: str
) -> None:
    stop = data.draw(st.lists(st.text("ab \n", min_size=1, max_size=5), max_size=4))
    found = [(text.find(s), -len(s), s) for s in stop if s in text]
    start, _, sequence = min(found, default=(len(text), 0, ""))
    expected: list[Event] = [Text(text[:start])] if text[:start].strip() else []
    expected += [Stopped(sequence)] if found else []
    assert decode_chunks(data.draw(cuts(text.encode())), stop=stop) == expected


def test_nothing_follows_a_stop_sequence() -> None:
    grammar = Grammar(lambda: Chunks([b"a ST", b"OP b", b"c"]), calls=JSON)
    decoder = Decoder(grammar, thinking=False, stop=["STOP"])
    assert decoder.feed(0) == [Text("a")]
    assert decoder.feed(1) == [Text(" "), Stopped("STOP")]
    assert decoder.stopped == "STOP"
    assert decoder.feed(2) == decoder.finish() == []


def test_nothing_waits_that_is_certain() -> None:
    chunks = [b"<think>", b"a", b"</think>", b"b", b"<", b"c", b"STOP"]
    grammar = Grammar(lambda: Chunks(chunks), "<think>", "</think>", calls=JSON)
    decoder = Decoder(grammar, thinking=False, stop=["STOP"])
    assert [decoder.feed(token) for token in range(len(chunks))] == [
        *([], [Thinking("a")], [ThinkingEnd((0, 1, 2))]),
        *([Text("b")], [], [Text("<c")], [Stopped("STOP")]),
    ]


def test_stop_sequences_are_not_looked_for_in_calls_and_reasoning() -> None:
    call = json_call("STOP", {"STOP": "STOP"})
    events = decode(f"<think>STOP</think>{call} STOP", stop=["STOP"])
    assert [type(event) for event in events] == [
        *(Thinking, ThinkingEnd, CallStart, CallInput, CallEnd, Stopped)
    ]


# Time


def test_time_grows_with_length_only() -> None:
    short, long = (_seconds("é\n" * n) for n in (7_000, 50_000))
    assert long < 2.0
    # Linear would be 7; quadratic 50.
    assert long / short < 20


def _seconds(value: str) -> float:
    data = json_call("f", {"a": value}, ensure_ascii=False).encode()
    chunks = [data[i : i + 4] for i in range(0, len(data), 4)]
    start = process_time()
    events = decode_chunks(chunks)
    seconds = process_time() - start
    assert events[-1] == CallEnd(complete=True)
    return seconds
