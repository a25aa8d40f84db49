"""The tokens that may replace a token without moving any token boundary."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from enum import Enum, auto

from mlxlab.traces.anonymize.bpe import BpeTokenizer, PreTokenKind

__all__ = ["Substitutes", "TokenClass", "begins_character"]

_ESCAPE = re.compile(rb"(\\u|\\|u|)([0-9A-Fa-f]+)")
_LETTERS = re.compile(rb" ?[A-Za-z]+")
#: A backslash and one of these may be an escape, which is its own pre-token.
_ESCAPED = tuple(b"bfnrtu")


class TokenClass(Enum):
    """The part of a text that a token belongs to."""

    WORD = auto()
    AFTER_BACKSLASH = auto()
    DIGIT = auto()
    NUMBER = auto()
    ESCAPE = auto()


class Substitutes:
    """The tokens of a vocabulary, by where they may stand.

    Attributes:
        tokenizer: the tokenizer of the vocabulary.
    """

    def __init__(self, tokenizer: BpeTokenizer) -> None:
        self.tokenizer = tokenizer
        tokens = tokenizer.tokens
        words = {t: data for t, data in tokens.items() if _LETTERS.fullmatch(data)}
        self._spaced = [t for t, data in words.items() if data.startswith(b" ")]
        self._letters = [t for t, data in words.items() if not data.startswith(b" ")]
        self._first = [t for t in self._letters if not self._may_become_control(t)]
        self._after_backslash = [t for t in self._first if tokens[t][0] not in _ESCAPED]
        self._digits = [t for t, data in tokens.items() if _is_digit(data)]
        self._nonzero = [t for t in self._digits if tokens[t] in b"123456789"]
        #: By the bytes before the hexadecimal digits, and the number of digits.
        self._escapes: defaultdict[tuple[bytes, int], list[int]] = defaultdict(list)
        for token, data in tokens.items():
            if match := _ESCAPE.fullmatch(data):
                self._escapes[match[1], len(match[2])].append(token)
        self._ends = [t for t, data in tokens.items() if 0x80 <= data[0] < 0xC0]
        self._endings: dict[tuple[bytes, PreTokenKind], list[int]] = {}

    def candidates(
        self, token: int, kind: TokenClass, head: bytes, *, first: bool, shared: bool
    ) -> tuple[Sequence[int], bytes]:
        """Return the candidates for a token, and the head for the next token.

        Args:
            token: the id to replace.
            kind: the part of the text that the token belongs to.
            head: the head that this method returned for the token before, empty at the
                start of a pre-token.
            first: whether the token begins a pre-token.
            shared: whether the token is an unfinished character in a pre-token that
                stays. It then stays in words too, which may share it as a prefix.

        Returns:
            Ids, empty if the token has to stay. And the head, on which the candidates
            for the next token depend: the escape so far, or a space or the bytes of an
            unfinished character that stay.
        """
        data = self.tokenizer.tokens[token]
        if kind is TokenClass.ESCAPE:
            return self._of_escape(data, len(head)), head + data
        character = head.strip() + data
        if begins_character(character) and (head or shared):
            return (), character.strip()
        if head.strip():
            wanted = (
                PreTokenKind.DIGIT if kind is TokenClass.DIGIT else PreTokenKind.WORD
            )
            return self._endings_of(head, wanted), b""
        if data == b" ":
            return (), data
        return self._of_whole(data, kind, first), b""

    def have_equal_letters(self, a: int, b: int) -> bool:
        """Return whether two tokens differ in upper and lower case at most."""
        tokens = self.tokenizer.tokens
        return a == b or tokens[a].lower() == tokens[b].lower()

    def _of_whole(self, data: bytes, kind: TokenClass, first: bool) -> Sequence[int]:
        if kind is TokenClass.DIGIT:
            return self._digits
        if kind is TokenClass.NUMBER:
            # A leading zero, or a last one in a fraction, would shorten a number.
            return () if data == b"0" else self._nonzero
        if data.startswith(b" "):
            return self._spaced
        if not first:
            return self._letters
        return (
            self._after_backslash if kind is TokenClass.AFTER_BACKSLASH else self._first
        )

    def _of_escape(self, data: bytes, offset: int) -> Sequence[int]:
        fixed = data[: max(0, 2 - offset)]
        return self._escapes.get((fixed, len(data) - len(fixed)), ())

    def _endings_of(self, head: bytes, kind: PreTokenKind) -> Sequence[int]:
        if (head, kind) not in self._endings:
            self._endings[head, kind] = [
                token
                for token in self._ends
                if self._is_pre_token(head + self.tokenizer.tokens[token], kind)
            ]
        return self._endings[head, kind]

    def _is_pre_token(self, data: bytes, kind: PreTokenKind) -> bool:
        try:
            found = list(self.tokenizer.pre_tokenize(data.decode()))
        except UnicodeDecodeError:
            return False
        return [pre_token.kind for pre_token in found] == [kind]

    def _may_become_control(self, token: int) -> bool:
        """Return whether a word may go on from ``token`` to a control token's name."""
        text = self.tokenizer.tokens[token].decode()
        return any(word.startswith(text) for word in self.tokenizer.control_words)


def begins_character(data: bytes) -> bool:
    """Return whether ``data`` is the first bytes of a character, after any space."""
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
