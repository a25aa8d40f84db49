"""Tool calls: the interface of a call format, and formats that mlx-lm parses."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mlxlab.decoding.events import CallEnd, CallInput, CallStart, Event
from mlxlab.decoding.tag_matcher import TagMatcher

__all__ = ["MALFORMED", "CallFormat", "CallReader", "ParsedCalls", "Parser", "Tools"]

#: Member added to the input of a malformed call. Clients check inputs against a schema,
#: so no client runs half a command.
MALFORMED = "mlxlab_malformed_call"

#: Function definitions as chat templates take them.
Tools: TypeAlias = Sequence[Mapping[str, Any]]

#: mlx-lm's ``parse_tool_call``.
Parser: TypeAlias = Callable[[str, list[Mapping[str, Any]] | None], Any]


class CallFormat(ABC):
    """The format in which a model writes tool calls.

    Attributes:
        start: the tag before a call.
        end: the tag after it; empty if a call ends with the answer.
    """

    start: str
    end: str

    @abstractmethod
    def reader(self, tools: Tools) -> CallReader:
        """Return a reader for one call, from after its opening tag."""

    def opening(self, name: str | None) -> str:
        """Return the text that opens a call of the tool ``name``, or of any tool.

        The text ends where tokenizers cut. A format that only mlx-lm can read opens
        with
        its tag for every name.
        """
        return self.start


class CallReader(ABC):
    """Reads one call, piece by piece.

    Attributes:
        started: the name is known and :class:`CallStart` was returned.
        ended: the call is complete and its closing tag was read.
        failed: the call is malformed. The text that :meth:`read` returned begins with
            the first malformed character.
    """

    def __init__(self) -> None:
        self.started = False
        self.ended = False
        self.failed = False
        self._unread = ""
        self._events: list[Event] = []
        self._waiting: list[str] = []
        self._opened = False
        self._has_members = False

    def read(self, text: str) -> tuple[list[Event], str]:
        """Read more text; return its events and, after the end, the unread text."""
        self._unread += text
        while not (self.ended or self.failed) and self._step():
            pass
        rest = ""
        if self.ended or self.failed:
            rest, self._unread = self._unread, ""
        return self._take(), rest

    def finish(self) -> list[Event]:
        """End with the answer. Only a call without a closing tag can end here."""
        return []

    def abandon(self) -> list[Event]:
        """Close the events of a malformed call, so that no client runs it."""
        if not self.started:
            return []
        opened = self._closers() if self._opened else "{"
        comma = ", " if self._has_members else ""
        closing = f'{opened}{comma}"{MALFORMED}": true}}'
        return [CallInput(closing), CallEnd(complete=False)]

    @abstractmethod
    def _step(self) -> bool:
        """Continue reading ``_unread``; False if that needs more text."""

    @abstractmethod
    def _closers(self) -> str:
        """Return the closing characters of everything open inside the input object."""

    def _match(self, *tags: str) -> str | None:
        """Read one of ``tags``, after white space; fail on other text."""
        self._unread = self._unread.lstrip()
        for tag in tags:
            if self._unread.startswith(tag):
                self._unread = self._unread[len(tag) :]
                return tag
        self.failed = not any(tag.startswith(self._unread) for tag in tags)
        return None

    def _start(self, name: object) -> None:
        if not isinstance(name, str) or not name:
            self.failed = True
            return
        self.started = True
        self._events.append(CallStart(name))
        self._events.extend(map(CallInput, self._waiting))

    def _write(self, text: str) -> None:
        """Return a piece of the input, all but its last bracket."""
        if not text:
            return
        self._opened = True
        self._has_members |= text.strip() not in ("", "{")
        if self.started:
            self._events.append(CallInput(text))
        else:
            self._waiting.append(text)

    def _end(self) -> None:
        """Complete the call with the last bracket, which was held back."""
        self._write("" if self._opened else "{")
        self._events += [CallInput("}"), CallEnd(complete=True)]
        self.ended = True

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


@dataclass(frozen=True, slots=True)
class ParsedCalls(CallFormat):
    """A format that mlx-lm parses at the closing tag.

    One pair of tags may hold several calls.
    """

    start: str
    end: str
    parse: Parser

    def reader(self, tools: Tools) -> CallReader:
        return _ParsedReader(self, tools)


class _ParsedReader(CallReader):
    def __init__(self, calls: ParsedCalls, tools: Tools) -> None:
        super().__init__()
        self._calls = calls
        self._tools = tools
        self._tag = TagMatcher([calls.end])
        self._body: list[str] = []

    def finish(self) -> list[Event]:
        if not self._calls.end:
            self._parse()
        return self._take()

    def _step(self) -> bool:
        clear, tag, self._unread = self._tag.feed(self._unread)
        self._body.append(clear)
        if tag is not None:
            self._parse()
        return False

    def _closers(self) -> str:
        return ""

    def _parse(self) -> None:
        try:
            parsed = self._calls.parse("".join(self._body), list(self._tools) or None)
            calls = parsed if isinstance(parsed, list) else [parsed]
            inputs = [(call["name"], write_input(call["arguments"])) for call in calls]
        except Exception:  # parsers raise any type of exception
            self.failed = True
            return
        if not inputs or not all(isinstance(n, str) and n for n, _ in inputs):
            self.failed = True
            return
        for name, text in inputs:
            self._start(name)
            self._events += [CallInput(text), CallEnd(complete=True)]
        self.ended = True


def write_input(value: object) -> str:
    """Return the JSON of a call's input.

    Raises:
        TypeError: the value is not a dict, or holds a value without JSON.
        ValueError: the value is infinite, circular or invalid Unicode.
    """
    if not isinstance(value, dict):
        raise TypeError(f"the input of a call is a dict, not {type(value).__name__}")
    return write_json(value)


def write_json(value: object) -> str:
    """Return JSON that every reader accepts.

    Raises:
        TypeError: the value holds a value without JSON.
        ValueError: the value is infinite, circular or invalid Unicode.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair would fail later, in the client's stream
    return text
