"""Events of an answer: whatever the decoder says, the order is the API's."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlxlab.decoding import (
    CallEnd,
    CallInput,
    CallStart,
    Event,
    Text,
    Thinking,
    ThinkingEnd,
)
from mlxlab.server.events import AnswerWriter, Usage
from mlxlab.server.generation import Completed, PromptPlanned
from mlxlab.strategies import Plan, Span

DELTAS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "thinking",
    "input_json_delta": "tool_use",
}
TEXTS = st.text(min_size=1, max_size=8)


def writer(**options: Any) -> AnswerWriter:
    return AnswerWriter("tiny", sign=lambda ids: f"signed {len(ids)}", **options)


def begun(length: int = 10, reused: int = 4, kept: int = 8) -> PromptPlanned:
    spans = (Span(1, 0, 0, reused),) if reused else ()
    return PromptPlanned(Plan(length, spans), kept)


class Order:
    """Checks events as a strict client does, and puts the message together."""

    def __init__(self) -> None:
        self.content: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None
        self.kinds: list[str] = []

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "message_start":
            assert self.kinds == []
            assert event["message"]["content"] == []
        elif kind == "content_block_start":
            assert self.open is None
            assert event["index"] == len(self.content)
            self.open = dict(event["content_block"])
            self.content.append(self.open)
        elif kind == "content_block_delta":
            self._extend(event)
        elif kind == "content_block_stop":
            assert self.open is not None
            assert event["index"] == len(self.content) - 1
            if self.open["type"] == "thinking":
                assert self.open["signature"].startswith("signed ")
            self.open = None
        else:
            assert kind in {"message_delta", "message_stop"}
            assert self.open is None
        self.kinds.append(kind)

    def _extend(self, event: dict[str, Any]) -> None:
        assert self.open is not None
        assert event["index"] == len(self.content) - 1
        delta = event["delta"]
        assert DELTAS[delta["type"]] == self.open["type"]
        assert not self.open.get("signature"), "the signature is last in its block"
        for key, value in delta.items():
            if key == "partial_json":
                self.open["json"] = self.open.get("json", "") + value
            elif key != "type":
                self.open[key] = self.open[key] + value


class AnyDecoder(RuleBasedStateMachine):
    """Says what a decoder may say, in any order that it may say it in."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self.writer = writer()
        self.order = Order()
        self.calls: list[str] = []
        self.in_call = self.thinking = self.thought = self.done = False
        self._write(begun())

    def _write(self, item: Any) -> None:
        for event in self.writer.write(item):
            self.order.take(event)

    def _say(self, *events: Event) -> None:
        self._write(events)

    @precondition(lambda self: not (self.in_call or self.thought or self.done))
    @rule(text=TEXTS)
    def think(self, text: str) -> None:
        self.thinking = True
        self._say(Thinking(text))

    @precondition(lambda self: not (self.in_call or self.thought or self.done))
    @rule(ids=st.lists(st.integers(0, 9), max_size=3))
    def end_thinking(self, ids: list[int]) -> None:
        self.thinking, self.thought = False, True
        self._say(ThinkingEnd(tuple(ids)))

    @precondition(lambda self: not (self.in_call or self.thinking or self.done))
    @rule(text=TEXTS)
    def say(self, text: str) -> None:
        self.thought = True
        self._say(Text(text))

    @precondition(lambda self: not (self.in_call or self.thinking or self.done))
    @rule(name=TEXTS)
    def call(self, name: str) -> None:
        self.thought = self.in_call = True
        self.calls.append("")
        self._say(CallStart(name))

    @precondition(lambda self: self.in_call)
    @rule(value=st.dictionaries(TEXTS, TEXTS, max_size=2), complete=st.booleans())
    def end_call(self, value: dict[str, str], complete: bool) -> None:
        self.in_call = False
        self.calls[-1] = text = json.dumps(value)
        self._say(CallInput(text[:1]), CallInput(text[1:]), CallEnd(complete))

    @precondition(lambda self: not (self.in_call or self.thinking or self.done))
    @rule()
    def finish(self) -> None:
        self.done = True
        self._write(Completed("end_turn", None, tuple(range(7))))

    @precondition(lambda self: self.done)
    @rule()
    def ask_again(self) -> None:
        self.begin()

    @invariant()
    def ends_once(self) -> None:
        kinds = self.order.kinds
        assert kinds[0] == "message_start"
        assert (kinds[-2:] == ["message_delta", "message_stop"]) == self.done
        found = [b for b in self.order.content if b["type"] == "tool_use"]
        closed = found[:-1] if self.in_call else found
        assert [block["json"] for block in closed] == [c for c in self.calls if c]
        assert len({block["id"] for block in found}) == len(found)


AnyDecoder.TestCase.settings = settings(max_examples=60, deadline=None)
TestAnyDecoder = AnyDecoder.TestCase


@given(st.data())
def test_usage_adds_up_to_the_prompt(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 1000))
    reused = data.draw(st.integers(0, length - 1))
    kept = data.draw(st.integers(0, length))
    wire = Usage.of(begun(length, reused, kept)).wire(3)
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert all(wire[part] >= 0 for part in parts)
    assert sum(wire[part] for part in parts) == length
    assert wire["cache_read_input_tokens"] == reused
    created = wire["cache_creation"]
    assert sum(created.values()) == wire["cache_creation_input_tokens"]


def test_usage_is_in_the_first_event_and_the_last() -> None:
    w = writer()
    start = next(iter(w.write(begun())))["message"]["usage"]
    end = next(iter(w.write(Completed("max_tokens", None, tuple(range(9))))))["usage"]
    assert start | {"output_tokens": 9} == end
    assert (w.stop_reason, w.ids) == ("max_tokens", tuple(range(9)))


def test_thinking_that_is_not_shown_still_has_its_signature() -> None:
    w, order = writer(show_thinking=False), Order()
    for item in (begun(), (Thinking("a"), ThinkingEnd((1, 2)), Text("b"))):
        for event in w.write(item):
            order.take(event)
    thinking, text = order.content
    assert (thinking["thinking"], thinking["signature"]) == ("", "signed 2")
    assert text["text"] == "b"


def test_a_matched_stop_sequence_is_given_back() -> None:
    w = writer()
    list(w.write(begun()))
    delta = next(iter(w.write(Completed("stop_sequence", "END", (1, 2)))))["delta"]
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
