"""Calls as nested tags, one tag per parameter, as Qwen3-Coder writes them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from mlxlab.decoding.calls import CallFormat, CallReader, Parser, Tools, write_json
from mlxlab.decoding.tag_matcher import TagMatcher

__all__ = ["XmlCalls"]

_FUNCTION = "<function="
_FUNCTION_END = "</function>"
_PARAMETER = "<parameter="
_PARAMETER_END = "</parameter>"
_NAME = re.compile(r"[^<>\n]*")
#: mlx-lm returns this text as a string only for string parameters.
_PROBE = "[1]"
#: mlx-lm converts this value even where the schema says string.
_NULL = "null"


@dataclass(frozen=True, slots=True)
class XmlCalls(CallFormat):
    """mlx-lm's ``qwen3_coder``, streamed.

    Strings are streamed; values of other types are converted at their end, by mlx-lm's
    parser. A closing tag of the call inside a value is content.
    """

    start: str
    end: str
    parse: Parser

    def reader(self, tools: Tools) -> CallReader:
        return _XmlReader(self, tools)

    def opening(self, name: str | None) -> str:
        opening = f"{self.start}\n{_FUNCTION}"
        return opening if name is None else f"{opening}{name}>\n"


class _XmlReader(CallReader):
    def __init__(self, calls: XmlCalls, tools: Tools) -> None:
        super().__init__()
        self._calls = calls
        self._tools = list(tools) or None
        self._next = self._read_function
        self._function = ""
        self._value: _Value | None = None

    def _step(self) -> bool:
        return bool(self._unread) and self._next()

    def _closers(self) -> str:
        return '"' if self._value is not None and self._value.is_open else ""

    def _read_function(self) -> bool:
        if self._match(_FUNCTION) is None:
            return False
        self._next = self._read_function_name
        return True

    def _read_function_name(self) -> bool:
        name = self._read_name()
        if name is None:
            return False
        self._function = name
        self._start(name)
        self._next = self._read_body
        return True

    def _read_body(self) -> bool:
        tag = self._match(_PARAMETER, _FUNCTION_END)
        if tag is None:
            return False
        is_parameter = tag == _PARAMETER
        self._next = self._read_parameter_name if is_parameter else self._read_tag
        return True

    def _read_parameter_name(self) -> bool:
        name = self._read_name()
        if name is None:
            return False
        self._value = _Value(name, streams=self._is_string(name))
        self._next = self._read_value
        return True

    def _read_value(self) -> bool:
        value = self._value
        assert value is not None
        clear, tag, self._unread = value.tag.feed(self._unread)
        self._write_value(value, value.feed(clear))
        if tag is None:
            return False
        self._end_value(value)
        self._value, self._next = None, self._read_body
        return True

    def _read_tag(self) -> bool:
        if self._match(self._calls.end) is not None:
            self._end()
        return False

    def _read_name(self) -> str | None:
        """Read the name up to ``>``."""
        match = _NAME.match(self._unread)
        length = match.end() if match else 0
        if length == len(self._unread):
            return None
        name = self._unread[:length].strip()
        self.failed = self._unread[length] != ">" or len(name.split()) != 1
        if self.failed:
            return None
        self._unread = self._unread[length + 1 :]
        return name

    def _write_value(self, value: _Value, text: str) -> None:
        if text:
            quoted = json.dumps(text, ensure_ascii=False)[1:-1]
            self._write(quoted if value.is_open else self._member(value, f'"{quoted}'))
            value.is_open = True

    def _end_value(self, value: _Value) -> None:
        if value.is_open:
            self._write('"')
            value.is_open = False
            return
        converted = self._convert(value.name, value.text)
        if converted is None:
            self.failed = True
        else:
            self._write(self._member(value, converted))

    def _member(self, value: _Value, text: str) -> str:
        opening = ", " if self._opened else "{"
        return f"{opening}{json.dumps(value.name, ensure_ascii=False)}: {text}"

    def _is_string(self, name: str) -> bool:
        return self._convert(name, _PROBE) == json.dumps(_PROBE)

    def _convert(self, name: str, text: str) -> str | None:
        """Convert a value to JSON with mlx-lm's parser; None if it is malformed."""
        call = (
            f"{_FUNCTION}{self._function}>{_PARAMETER}{name}>\n{text}\n"
            f"{_PARAMETER_END}{_FUNCTION_END}"
        )
        try:
            return write_json(self._calls.parse(call, self._tools)["arguments"][name])
        except Exception:  # the parser raises any type of exception
            return None


class _Value:
    """A parameter's value while it is read.

    One newline at each end belongs to the template and is dropped.

    Attributes:
        name: name of the parameter.
        tag: finds the closing tag.
        is_open: whether a string was opened and not closed.
    """

    def __init__(self, name: str, *, streams: bool) -> None:
        self.name = name
        self.tag = TagMatcher([_PARAMETER_END])
        self.is_open = False
        self._streams = streams
        self._started = False
        self._held: list[str] = []

    def feed(self, text: str) -> str:
        """Add text and return the text that can be streamed now."""
        if text and not self._started:
            text, self._started = text.removeprefix("\n"), True
        if not text:
            return ""
        self._held.append(text)
        if not self._streams:
            return ""
        held = "".join(self._held)
        ready = held.removesuffix("\n")
        if not self.is_open and _NULL.startswith(ready.lower()):
            return ""
        self._held = [held[len(ready) :]]
        return ready

    @property
    def text(self) -> str:
        """The value, if none of it was streamed."""
        return "".join(self._held).removesuffix("\n")
