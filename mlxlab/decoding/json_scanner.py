"""Reads one JSON object while it is being written.

The output can be closed at any time: commas, keys, numbers, literals and escapes wait
until they are whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum, auto
from math import isfinite

__all__ = ["JsonScanner", "Piece"]

#: Limits that other readers of JSON share; longer or deeper values are malformed.
_DEEPEST = 200
_LONGEST_LITERAL = 1000

_SPACE = " \t\n\r"
_LITERAL_RUN = re.compile(r"[-+.0-9A-Za-z]+")
_LITERAL = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_IN_STRING = re.compile(
    r"""
      (?P<end> " )
    | (?P<plain> [^"\\\x00-\x1f]+ )
    | (?P<control> [\x00-\x1f] )
    | (?P<pair> \\u[dD][89abAB][0-9a-fA-F]{2} \\u[dD][c-fC-F][0-9a-fA-F]{2} )
    | (?P<cut> \\ ( u[0-9a-fA-F]{0,3} )? \Z
               | \\u[dD][89abAB][0-9a-fA-F]{2}
                 ( \\ ( u ( [dD] ( [c-fC-F][0-9a-fA-F]? )? )? )? )? \Z )
    | (?P<half> \\u[dD][89a-fA-F][0-9a-fA-F]{2} )
    | (?P<escape> \\ ( ["\\/bfnrt] | u[0-9a-fA-F]{4} ) )
    | (?P<stray> \\ )
    """,
    re.VERBOSE,
)


class _Expect(Enum):
    OBJECT = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    FIRST_ITEM = auto()
    VALUE = auto()
    COMMA = auto()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the value of a member of the object; ``last`` completes the value."""

    key: str
    json: str
    last: bool


class _String:
    """The inside of a string, made valid.

    Control characters are escaped. A backslash that escapes nothing is escaped itself.
    Half a surrogate pair becomes U+FFFD.
    """

    def __init__(self) -> None:
        self.closed = False
        self._cut = ""

    def read(self, text: str) -> tuple[str, str]:
        """Return valid JSON text, and the text after the closing quote."""
        text, self._cut = self._cut + text, ""
        pieces: list[str] = []
        position = 0
        while match := _IN_STRING.match(text, position):
            position = match.end()
            match match.lastgroup:
                case "end":
                    self.closed = True
                    break
                case "cut":
                    self._cut = match.group()
                case "control":
                    pieces.append(json.dumps(match.group())[1:-1])
                case "half":
                    pieces.append("\\ufffd")
                case "stray":
                    pieces.append("\\\\")
                case _:
                    pieces.append(match.group())
        return "".join(pieces), text[position:]


class JsonScanner:
    """Reads one object, one lexical step at a time.

    Attributes:
        done: the object is closed.
        failed: the text is not JSON. The text that :meth:`step` returned begins with
            the first malformed character.
    """

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._expect = _Expect.OBJECT
        self._closers: list[str] = []
        self._key = ""
        self._held: list[str] = []
        self._literal = ""
        self._string: _String | None = None
        self._in_key = False

    def step(self, text: str) -> tuple[Piece | None, str]:
        """Take one step into ``text``, which is not empty.

        Returns:
            The next piece of a member's value, if there is one, and the unread text.
        """
        if self._string is not None:
            return self._read_string(self._string, text)
        if self._literal:
            return self._read_literal(text)
        return self._read_structure(text)

    def closers(self, depth: int) -> str:
        """Return the characters that close the output down to ``depth`` brackets."""
        quote = '"' if self._string is not None and not self._in_key else ""
        return quote + "".join(reversed(self._closers[depth:]))

    def _read_structure(self, text: str) -> tuple[Piece | None, str]:
        body = text.lstrip(_SPACE)
        if len(body) < len(text):
            self._held.append(text[: len(text) - len(body)])
            return None, body
        char, rest = text[0], text[1:]
        match self._expect:
            case _Expect.COLON if char == ":":
                self._hold(char, _Expect.VALUE)
            case _Expect.COMMA if char == ",":
                in_object = self._closers[-1] == "}"
                self._hold(char, _Expect.KEY if in_object else _Expect.VALUE)
            case _Expect.FIRST_KEY | _Expect.KEY if char == '"':
                self._open_key()
            case _Expect.COMMA | _Expect.FIRST_KEY | _Expect.FIRST_ITEM if (
                char == self._closers[-1]
            ):
                return self._close(char), rest
            case _Expect.OBJECT if char == "{":
                self._push(char)
            case _Expect.VALUE | _Expect.FIRST_ITEM:
                return self._open_value(text)
            case _:
                self.failed = True
                return None, text
        return None, rest

    def _hold(self, char: str, expect: _Expect) -> None:
        self._held.append(char)
        self._expect = expect

    def _open_key(self) -> None:
        self._outside()
        self._held.append('"')
        self._string, self._in_key = _String(), True

    def _open_value(self, text: str) -> tuple[Piece | None, str]:
        char, rest = text[0], text[1:]
        self._outside()
        if char == '"':
            self._string, self._in_key = _String(), False
            return self._let_through(char), rest
        if char in "{[" and len(self._closers) < _DEEPEST:
            self._push(char)
            return self._let_through(char), rest
        if _LITERAL_RUN.match(char):
            return self._read_literal(text)
        self.failed = True
        return None, text

    def _outside(self) -> None:
        """Drop the held text if it belongs to no member's value."""
        if len(self._closers) == 1:
            self._held.clear()

    def _push(self, char: str) -> None:
        in_object = char == "{"
        self._closers.append("}" if in_object else "]")
        self._expect = _Expect.FIRST_KEY if in_object else _Expect.FIRST_ITEM

    def _close(self, char: str) -> Piece | None:
        self._closers.pop()
        if not self._closers:
            self.done = True
            return None
        return self._end_value(char)

    def _read_string(self, string: _String, text: str) -> tuple[Piece | None, str]:
        piece, rest = string.read(text)
        if self._in_key:
            self._held.append(piece)
            if string.closed:
                self._end_key()
            return None, rest
        if not string.closed:
            return self._let_through(piece), rest
        self._string = None
        return self._end_value(piece + '"'), rest

    def _end_key(self) -> None:
        self._held.append('"')
        self._string, self._expect = None, _Expect.COLON
        if len(self._closers) == 1:
            self._key = json.loads("".join(self._held))

    def _read_literal(self, text: str) -> tuple[Piece | None, str]:
        run = _LITERAL_RUN.match(text)
        if run is not None:
            length = min(run.end(), _LONGEST_LITERAL - len(self._literal))
            self._literal += text[:length]
            self.failed = len(self._literal) == _LONGEST_LITERAL
            return None, text[length:]
        literal, self._literal = self._literal, ""
        self.failed = not _is_literal(literal)
        return None if self.failed else self._end_value(literal), text

    def _end_value(self, text: str) -> Piece:
        self._expect = _Expect.COMMA
        return Piece(self._key, self._take(text), last=len(self._closers) == 1)

    def _let_through(self, text: str) -> Piece:
        return Piece(self._key, self._take(text), last=False)

    def _take(self, text: str) -> str:
        held, self._held = "".join(self._held), []
        return held + text


def _is_literal(text: str) -> bool:
    if not _LITERAL.fullmatch(text):
        return False
    return text[0] in "tfn" or isfinite(float(text))
