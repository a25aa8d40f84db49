"""Cuts text into pieces and tokens as a byte-level BPE tokenizer cuts it.

Knows nothing of what is done with the pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from operator import itemgetter

from tokenizers import Tokenizer

__all__ = ["Cutter", "Kind", "Piece"]

_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{4}")
_SURROGATES = r"[\ud800-\udfff]+"


class Kind(Enum):
    """What a piece consists of."""

    WORD = auto()
    DIGIT = auto()
    ESCAPE = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text whose tokens depend on nothing around it.

    Attributes:
        kind: a word has letters only, with at most one space in front; an escape is
            four hexadecimal digits after a backslash and a u.
        tokens: ids; none for a control token or half a surrogate pair.
    """

    text: str
    kind: Kind
    tokens: tuple[int, ...] = ()


class Cutter:
    """Cuts as ``tokenizer`` does: a byte-level BPE without normaliser.

    Attributes:
        tokens: id to bytes, without control tokens.
        control_words: the words that control tokens begin with.
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
        self._pieces: dict[str, Piece] = {}

    def cut(self, text: str) -> Iterator[Piece]:
        """The pieces of ``text``, which they give when joined."""
        for i, part in enumerate(self._verbatim.split(text)):
            if i % 2:
                yield Piece(part, Kind.OTHER)
                continue
            for value, (start, stop) in self._pre_tokenizer.pre_tokenize_str(part):
                yield self._piece(part[start:stop], value)

    def encode(self, *tokens: int) -> tuple[int, ...]:
        """The ids of the joint text of some tokens of one piece."""
        return self._encode("".join(self._values[token] for token in tokens))

    def _encode(self, value: str) -> tuple[int, ...]:
        return tuple(token.id for token in self._model.tokenize(value))

    def _piece(self, text: str, value: str) -> Piece:
        piece = self._pieces.get(text)
        if piece is None:
            piece = Piece(text, self._kind(text), self._encode(value))
            self._pieces[text] = piece
        return piece

    def _kind(self, text: str) -> Kind:
        first = text.lstrip(" ")[:1]
        if self._is_letter(first):
            return Kind.WORD
        if len(text) == 1 and text.isdecimal():
            return Kind.DIGIT
        return Kind.ESCAPE if _ESCAPE.fullmatch(text) else Kind.OTHER

    def _is_letter(self, char: str) -> bool:
        """As the tokenizer sees it: its Unicode tables may be older than Python's."""
        if char.isascii():
            return char.isalpha()
        return len(self._pre_tokenizer.pre_tokenize_str(f"a{char}")) == 1


def _alphabet() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary.

    Visible Latin-1 characters stand for themselves, the other bytes in order for the
    characters from U+0100 on (Radford et al., GPT-2, 2019).
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(visible))
    chars = [*map(chr, visible), *(chr(0x100 + n) for n in range(len(others)))]
    return dict(zip(chars, visible + others, strict=True))
