"""Calls as nested tags, a tag a parameter: what Qwen3-Coder writes.

Knows nothing of tokens, reasoning and the text around a call.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from mlxlab.decoding.calls import CallFormat, CallReader, Parser, Tools, write_json
from mlxlab.decoding.tag_matcher import Matcher

__all__ = ["XmlCalls"]

_FUNCTION = "<function="
_FUNCTION_END = "</function>"
_PARAMETER = "<parameter="
_PARAMETER_END = "</parameter>"
_NAME = re.compile(r"[^<>\n]*")
#: Only a parameter that mlx-lm takes for a string comes back as this string.
_PROBE = "[1]"
#: The value that mlx-lm converts even where the schema says string.
_NULL = "null"


@dataclass(frozen=True, slots=True)
class XmlCalls(CallFormat):
    """mlx-lm's ``qwen3_coder``, streamed.

    Strings are let through while they are written, other types converted at their
    end, by mlx-lm's parser. A closing tag of the call inside a value is content.
    """

    start: str
    end: str
    parse: Parser

    def reader(self, tools: Tools) -> CallReader:
        return _XmlReader(self, tools)

    def opening(self, name: str | None) -> str:
        begun = f"{self.start}\n{_FUNCTION}"
        return begun if name is None else f"{begun}{name}>\n"


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
        """The name up to ``>``."""
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
        begun = ", " if self._opened else "{"
        return f"{begun}{json.dumps(value.name, ensure_ascii=False)}: {text}"

    def _is_string(self, name: str) -> bool:
        return self._convert(name, _PROBE) == json.dumps(_PROBE)

    def _convert(self, name: str, text: str) -> str | None:
        """JSON of a parameter's value, by mlx-lm; None if it is malformed."""
        call = (
            f"{_FUNCTION}{self._function}>{_PARAMETER}{name}>\n{text}\n"
            f"{_PARAMETER_END}{_FUNCTION_END}"
        )
        try:
            return write_json(self._calls.parse(call, self._tools)["arguments"][name])
        except Exception:  # the parser raises whatever it stumbles upon
            return None


class _Value:
    """A parameter's value on its way: one newline at either end is the template's.

    Attributes:
        name: of the parameter.
        tag: looks for the closing tag.
        is_open: a string that was begun and is not closed.
    """

    def __init__(self, name: str, *, streams: bool) -> None:
        self.name = name
        self.tag = Matcher([_PARAMETER_END])
        self.is_open = False
        self._streams = streams
        self._begun = False
        self._held: list[str] = []

    def feed(self, text: str) -> str:
        """What may be let through."""
        if text and not self._begun:
            text, self._begun = text.removeprefix("\n"), True
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
        """The value, if nothing was let through."""
        return "".join(self._held).removesuffix("\n")
