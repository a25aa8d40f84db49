"""Splits text into pre-tokens and tokens as a byte-level BPE tokenizer does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from operator import itemgetter

from tokenizers import Tokenizer

__all__ = ["BpeTokenizer", "PreToken", "PreTokenKind"]

_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{4}")
_SURROGATES = r"[\ud800-\udfff]+"


class PreTokenKind(Enum):
    """The characters of a pre-token."""

    WORD = auto()
    DIGIT = auto()
    ESCAPE = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class PreToken:
    """A part of a text whose tokens depend on nothing around it.

    Attributes:
        kind: a word has letters only, with at most one space in front; an escape is
            four hexadecimal digits after a backslash and a u.
        tokens: ids; none for a control token or half a surrogate pair.
    """

    text: str
    kind: PreTokenKind
    tokens: tuple[int, ...] = ()


class BpeTokenizer:
    """The steps of a byte-level BPE tokenizer without normaliser, one by one.

    Args:
        tokenizer: the tokenizer that texts are split like.

    Attributes:
        tokens: bytes by id, without control tokens.
        control_words: the first words of control tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._model = tokenizer.model
        self._pre_tokenizer = tokenizer.pre_tokenizer
        added = tokenizer.get_added_tokens_decoder()
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        self._values = {
            id: value for value, id in sorted(vocabulary.items(), key=itemgetter(1))
        }
        alphabet = _alphabet()
        self.tokens: Mapping[int, bytes] = {
            id: bytes(map(alphabet.__getitem__, value))
            for id, value in self._values.items()
        }
        literals = sorted((t.content for t in added.values()), key=len, reverse=True)
        parts = [*map(re.escape, literals), _SURROGATES]
        self._verbatim = re.compile(f"({'|'.join(parts)})")
        words = [re.search("[A-Za-z]+", literal) for literal in literals]
        self.control_words = frozenset(word.group() for word in words if word)
        self._pre_tokens: dict[str, PreToken] = {}

    def pre_tokenize(self, text: str) -> Iterator[PreToken]:
        """Yield the pre-tokens of ``text``, which join to ``text``."""
        for i, part in enumerate(self._verbatim.split(text)):
            if i % 2:
                yield PreToken(part, PreTokenKind.OTHER)
                continue
            for value, (start, stop) in self._pre_tokenizer.pre_tokenize_str(part):
                yield self._pre_token(part[start:stop], value)

    def encode(self, *tokens: int) -> tuple[int, ...]:
        """Return the ids of the joined text of some tokens of one pre-token."""
        return self._encode("".join(self._values[token] for token in tokens))

    def _encode(self, value: str) -> tuple[int, ...]:
        return tuple(token.id for token in self._model.tokenize(value))

    def _pre_token(self, text: str, value: str) -> PreToken:
        known = self._pre_tokens.get(text)
        if known is None:
            known = PreToken(text, self._kind(text), self._encode(value))
            self._pre_tokens[text] = known
        return known

    def _kind(self, text: str) -> PreTokenKind:
        first = text.lstrip(" ")[:1]
        if self._is_letter(first):
            return PreTokenKind.WORD
        if len(text) == 1 and text.isdecimal():
            return PreTokenKind.DIGIT
        return PreTokenKind.ESCAPE if _ESCAPE.fullmatch(text) else PreTokenKind.OTHER

    def _is_letter(self, char: str) -> bool:
        """Ask the tokenizer, whose Unicode tables may be older than Python's."""
        if char.isascii():
            return char.isalpha()
        return len(self._pre_tokenizer.pre_tokenize_str(f"a{char}")) == 1


def _alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Visible Latin-1 characters stand for themselves. Characters from U+0100 on stand
    for the remaining bytes in order (Radford et al., GPT-2, 2019).
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(visible))
    chars = [*map(chr, visible), *(chr(0x100 + n) for n in range(len(others)))]
    return dict(zip(chars, visible + others, strict=True))
