"""Turns one answer's ids into events that do not depend on the token boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from mlxlab.decoding.calls import CallReader, Tools
from mlxlab.decoding.events import (
    CallStart,
    Event,
    Stopped,
    Text,
    Thinking,
    ThinkingEnd,
    join_pieces,
)
from mlxlab.decoding.grammar import Grammar
from mlxlab.decoding.tag_matcher import TagMatcher, Tail

__all__ = ["Decoder"]

_NEWLINES = "\r\n"

#: Reads text in one state of the answer and returns the text for the next state.
_Phase: TypeAlias = Callable[[str], str]


class Decoder:
    """Decodes one answer.

    The decoder trims white space that the chat template puts back, so that the
    template renders the answer as it was generated. It trims newlines around thinking,
    newlines before text, one newline before a call, and white space between calls. Text
    of only white space is never returned.

    A malformed call becomes text. If its start was already returned, its input is first
    closed with a member :data:`~mlxlab.decoding.calls.MALFORMED`.

    Args:
        grammar: the grammar of the answering model.
        thinking: whether the prompt leaves thinking open, see
            :meth:`~mlxlab.decoding.grammar.Grammar.opens_in_thinking`.
        tools: function definitions as the chat template takes them. Some formats
            convert a parameter by its schema.
        stop: sequences that end the answer when they occur in visible text. The
            earliest match counts, then the longest.

    Attributes:
        stopped: the stop sequence that was found.
    """

    def __init__(
        self,
        grammar: Grammar,
        *,
        thinking: bool,
        tools: Tools = (),
        stop: Sequence[str] = (),
    ) -> None:
        self.stopped: str | None = None
        self._grammar = grammar
        self._tools = tools
        self._stop = frozenset(stop)
        self._detokenizer = grammar.detokenizer()
        self._events: list[Event] = []
        self._final = False

        self._opening: list[str] = []
        self._tag = ""
        self._ids: list[int] = []
        self._exact = True
        self._think_end = TagMatcher([grammar.think_end])

        call_start = grammar.calls.start if grammar.calls else ""
        self._visible = TagMatcher([*stop, call_start, *grammar.markers])
        self._call_end = TagMatcher([grammar.calls.end] if grammar.calls else [])
        self._call: CallReader | None = None
        self._raw: list[str] = []

        self._at_start = True
        self._tail = Tail()
        self._phase: _Phase = self._read_text
        if grammar.think_end:
            self._phase = self._read_opening
            if thinking:
                self._begin_thinking()

    def feed(self, token: int) -> list[Event]:
        """Decode one more id; the id that ends the turn is not part of the answer.

        After a stop sequence, no more events are returned.
        """
        if self.stopped is not None:
            return []
        if self._phase in (self._read_opening, self._read_thinking):
            self._ids.append(token)
        self._read(self._detokenizer.feed(token))
        if self._phase == self._read_opening and not self._tag:
            self._ids.clear()
        return self._take()

    def finish(self) -> list[Event]:
        """Return the last events of an answer that ended or was cut off."""
        if self.stopped is not None:
            return []
        self._final = True
        self._read(self._detokenizer.finish())
        if self.stopped is None:
            self._close()
        return self._take()

    def _read(self, text: str) -> None:
        while True:
            phase = self._phase
            text = phase(text)
            if self.stopped is not None or (not text and phase == self._phase):
                return

    def _close(self) -> None:
        if self._phase == self._read_thinking:
            self._events.append(ThinkingEnd(()))
            return
        if self._call is not None:
            self._take_call(self._call.finish())
            if not self._call.ended:
                self._break_call(self._call, "")
        self._end_text()

    # Thinking

    def _read_opening(self, text: str) -> str:
        """Read the opening tag, which counts only after nothing but white space."""
        body = text if self._tag else text.lstrip()
        self._opening.append(text[: len(text) - len(body)])
        self._tag += body
        if self._tag.startswith(self._grammar.think_start):
            rest = self._tag[len(self._grammar.think_start) :]
            self._exact = self._text_of(self._ids).startswith(self._grammar.think_start)
            self._begin_thinking()
            return rest
        if self._grammar.think_start.startswith(self._tag) and not self._final:
            return ""
        self._phase = self._read_text
        return "".join(self._opening) + self._tag

    def _begin_thinking(self) -> None:
        self._phase = self._read_thinking
        self._tail = Tail(_NEWLINES)

    def _read_thinking(self, text: str) -> str:
        text = self._skip_newlines(text)
        clear, tag, rest = self._think_end.feed(text, self._final)
        ready = self._tail.feed(clear)
        if ready:
            self._events.append(Thinking(ready))
        if tag is None:
            return rest
        exact = self._exact and not rest
        self._events.append(ThinkingEnd(tuple(self._ids) if exact else ()))
        self._begin_text()
        self._phase = self._read_text
        return rest

    # Text

    def _begin_text(self) -> None:
        self._at_start = True
        self._tail = Tail()

    def _read_text(self, text: str) -> str:
        text = self._skip_newlines(text)
        clear, found, rest = self._visible.feed(text, self._final)
        self._say(clear)
        if found is None:
            return rest
        if found in self._stop:
            self._end_text()
            self._events.append(Stopped(found))
            self.stopped = found
        elif self._grammar.calls and found == self._grammar.calls.start:
            self._call = self._grammar.calls.reader(self._tools)
            self._raw = [found]
            self._phase = self._read_call
        return rest

    def _say(self, text: str) -> None:
        ready = self._tail.feed(text)
        if ready:
            self._events.append(Text(ready))

    def _end_text(self, before_call: bool = False) -> None:
        held = self._tail.held
        held = held.removesuffix("\n") if before_call else held
        if held and self._tail.started:
            self._events.append(Text(held))
        self._begin_text()

    def _skip_newlines(self, text: str) -> str:
        if self._at_start:
            text = text.lstrip(_NEWLINES)
            self._at_start = not text
        return text

    # Tool calls

    def _read_call(self, text: str) -> str:
        call = self._call
        assert call is not None
        self._raw.append(text)
        events, rest = call.read(text)
        self._take_call(events)
        if call.ended:
            self._call, self._phase = None, self._read_text
        elif call.failed:
            self._break_call(call, rest)
        return rest

    def _take_call(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, CallStart):
                self._end_text(before_call=True)
            self._events.append(event)

    def _break_call(self, call: CallReader, rest: str) -> None:
        """Turn a malformed call into text.

        If the call's start was returned, the rest up to its closing tag becomes text
        too.
        A call inside that rest is more likely a part of the broken call.
        """
        self._events += call.abandon()
        raw = "".join(self._raw)
        self._at_start = False
        self._say(raw[: len(raw) - len(rest)])
        self._call = None
        self._phase = self._read_broken_call if call.started else self._read_text

    def _read_broken_call(self, text: str) -> str:
        clear, tag, rest = self._call_end.feed(text, self._final)
        self._say(clear + (tag or ""))
        if tag is not None:
            self._phase = self._read_text
        return rest

    def _text_of(self, ids: Iterable[int]) -> str:
        return "".join(map(self._grammar.detokenizer().feed, ids))

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return join_pieces(events)
