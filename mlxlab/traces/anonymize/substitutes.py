"""What a token may be replaced by, so that text is cut at the same places as before.

Knows nothing of how one of several candidates is chosen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from enum import Enum, auto

from mlxlab.traces.anonymize.bpe import Cutter, Kind

__all__ = ["Candidates", "Sort", "begins_character"]

_ESCAPE = re.compile(rb"(\\u|\\|u|)([0-9A-Fa-f]+)")
_LETTERS = re.compile(rb" ?[A-Za-z]+")
#: A backslash followed by one of these may be an escape, a piece of its own.
_ESCAPED = tuple(b"bfnrtu")


class Sort(Enum):
    """What a token is part of."""

    WORD = auto()
    AFTER_BACKSLASH = auto()
    DIGIT = auto()
    NUMBER = auto()
    ESCAPE = auto()


class Candidates:
    """Candidates out of a vocabulary.

    Attributes:
        cutter: for the vocabulary's tokenizer.
    """

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        tokens = cutter.tokens
        words = {t: data for t, data in tokens.items() if _LETTERS.fullmatch(data)}
        self._spaced = [t for t, data in words.items() if data.startswith(b" ")]
        self._letters = [t for t, data in words.items() if not data.startswith(b" ")]
        self._first = [t for t in self._letters if not self._may_become_control(t)]
        self._after_backslash = [t for t in self._first if tokens[t][0] not in _ESCAPED]
        self._digits = [t for t, data in tokens.items() if _is_digit(data)]
        self._nonzero = [t for t in self._digits if tokens[t] in b"123456789"]
        #: By what precedes the hexadecimal digits in them, and how many those are.
        self._escapes: defaultdict[tuple[bytes, int], list[int]] = defaultdict(list)
        for token, data in tokens.items():
            if match := _ESCAPE.fullmatch(data):
                self._escapes[match[1], len(match[2])].append(token)
        self._ends = [t for t, data in tokens.items() if 0x80 <= data[0] < 0xC0]
        self._endings: dict[tuple[bytes, Kind], list[int]] = {}

    def of(
        self, token: int, sort: Sort, head: bytes, *, first: bool, shared: bool
    ) -> tuple[Sequence[int], bytes]:
        """The candidates for a token, and the head for the one after it.

        Args:
            token: what is replaced.
            sort: what it is part of.
            head: what this call gave for the token before, empty at the start.
            first: whether a piece begins with it.
            shared: whether it is an unfinished character in a piece that stays. Then
                it stays in words too, as both may have it in common.

        Returns:
            Ids, none if the token has to stay; and what the candidates for the next
            token depend on: an escape so far, or a space or the bytes of an
            unfinished character that stay.
        """
        data = self.cutter.tokens[token]
        if sort is Sort.ESCAPE:
            return self._of_escape(data, len(head)), head + data
        character = head.strip() + data
        if begins_character(character) and (head or shared):
            return (), character.strip()
        if head.strip():
            kind = Kind.DIGIT if sort is Sort.DIGIT else Kind.WORD
            return self._endings_of(head, kind), b""
        if data == b" ":
            return (), data
        return self._of_whole(data, sort, first), b""

    def alike(self, a: int, b: int) -> bool:
        """Whether two tokens are the same letters."""
        tokens = self.cutter.tokens
        return a == b or tokens[a].lower() == tokens[b].lower()

    def _of_whole(self, data: bytes, sort: Sort, first: bool) -> Sequence[int]:
        if sort is Sort.DIGIT:
            return self._digits
        if sort is Sort.NUMBER:
            # A zero in front, or at a fraction's end, would make a number shorter.
            return () if data == b"0" else self._nonzero
        if data.startswith(b" "):
            return self._spaced
        if not first:
            return self._letters
        return self._after_backslash if sort is Sort.AFTER_BACKSLASH else self._first

    def _of_escape(self, data: bytes, offset: int) -> Sequence[int]:
        fixed = data[: max(0, 2 - offset)]
        return self._escapes.get((fixed, len(data) - len(fixed)), ())

    def _endings_of(self, head: bytes, kind: Kind) -> Sequence[int]:
        if (head, kind) not in self._endings:
            self._endings[head, kind] = [
                token
                for token in self._ends
                if self._is_piece(head + self.cutter.tokens[token], kind)
            ]
        return self._endings[head, kind]

    def _is_piece(self, data: bytes, kind: Kind) -> bool:
        try:
            pieces = list(self.cutter.cut(data.decode()))
        except UnicodeDecodeError:
            return False
        return [piece.kind for piece in pieces] == [kind]

    def _may_become_control(self, token: int) -> bool:
        """Whether a word that begins so may become the name of a control token."""
        text = self.cutter.tokens[token].decode()
        return any(word.startswith(text) for word in self.cutter.control_words)


def begins_character(data: bytes) -> bool:
    """Whether ``data`` is the first bytes of a character, after any space."""
    try:
        data.strip().decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False


def _is_digit(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return len(text) == 1 and text.isdecimal()
