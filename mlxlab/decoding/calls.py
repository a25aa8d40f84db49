"""Tool calls: what a format has to offer, and formats that only mlx-lm can read.

Knows nothing of tokens, reasoning and the text around a call.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mlxlab.decoding.events import CallEnd, CallInput, CallStart, Event
from mlxlab.decoding.tag_matcher import Matcher

__all__ = ["MALFORMED", "CallFormat", "CallReader", "ParsedCalls", "Parser", "Tools"]

#: Member that the input of a malformed call gets. Clients check inputs by schema, so
#: that none runs half a command.
MALFORMED = "mlxlab_malformed_call"

#: Function definitions as chat templates take them.
Tools: TypeAlias = Sequence[Mapping[str, Any]]

#: mlx-lm's ``parse_tool_call``.
Parser: TypeAlias = Callable[[str, list[Mapping[str, Any]] | None], Any]


class CallFormat(ABC):
    """How a model writes tool calls.

    Attributes:
        start: the tag before a call.
        end: the tag behind it; empty if the answer's end is the call's.
    """

    start: str
    end: str

    @abstractmethod
    def reader(self, tools: Tools) -> CallReader:
        """Reads one call, from behind its opening tag."""

    def opening(self, name: str | None) -> str:
        """Text that opens a call of the tool ``name``, or of any.

        Ends where tokenizers cut. A format that only mlx-lm can read opens with its
        tag, whatever the name.
        """
        return self.start


class CallReader(ABC):
    """Reads one call, written piece by piece.

    Attributes:
        started: its name is known and :class:`CallStart` was given.
        ended: it is complete, its closing tag read.
        failed: it is malformed; what :meth:`read` left over begins with the reason.
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
        """Read more text; what is unread once the call has ended or failed is left."""
        self._unread += text
        while not (self.ended or self.failed) and self._step():
            pass
        rest = ""
        if self.ended or self.failed:
            rest, self._unread = self._unread, ""
        return self._take(), rest

    def finish(self) -> list[Event]:
        """The answer is over. Only what ends without a tag can end here."""
        return []

    def abandon(self) -> list[Event]:
        """Close what was given of a malformed call so that no client runs it."""
        if not self.started:
            return []
        opened = self._closers() if self._opened else "{"
        comma = ", " if self._has_members else ""
        closing = f'{opened}{comma}"{MALFORMED}": true}}'
        return [CallInput(closing), CallEnd(complete=False)]

    @abstractmethod
    def _step(self) -> bool:
        """Read on in ``_unread``; False if that takes more text."""

    @abstractmethod
    def _closers(self) -> str:
        """What closes all that is open inside the input object."""

    def _match(self, *tags: str) -> str | None:
        """Read one of ``tags``, after white space; fail on anything else."""
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
        """Give a piece of the input, all but its last bracket."""
        if not text:
            return
        self._opened = True
        self._has_members |= text.strip() not in ("", "{")
        if self.started:
            self._events.append(CallInput(text))
        else:
            self._waiting.append(text)

    def _end(self) -> None:
        """The call is whole: the last bracket, held back till now, can go."""
        self._write("" if self._opened else "{")
        self._events += [CallInput("}"), CallEnd(complete=True)]
        self.ended = True

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


@dataclass(frozen=True, slots=True)
class ParsedCalls(CallFormat):
    """A format that mlx-lm parses: all is known at the closing tag.

    There may be several calls between the tags.
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
        self._tag = Matcher([calls.end])
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
        except Exception:  # parsers raise whatever they stumble upon
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
    """JSON of a call's input.

    Raises:
        TypeError: no dict, or something in it has no JSON.
        ValueError: infinite, circular, or no Unicode.
    """
    if not isinstance(value, dict):
        raise TypeError(f"the input of a call is a dict, not {type(value).__name__}")
    return write_json(value)


def write_json(value: object) -> str:
    """JSON that every reader takes.

    Raises:
        TypeError: something has no JSON.
        ValueError: infinite, circular, or no Unicode.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair would fail later, in the client's stream
    return text
