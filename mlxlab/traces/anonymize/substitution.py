"""Replaces the words of texts; token counts and shared prefixes of texts stay.

Letters and digits are replaced and all else stays, so the result splits into pre-tokens
at the same places. Each token of a word is replaced by a random token that depends on
the tokens before it in the word and on the :data:`MEMORY` words before that. This is
prefix-preserving encryption (Xu et al., Crypto-PAn, 2002) over tokens instead of bits.

Texts with a common prefix therefore keep exactly that prefix, and text that repeats
elsewhere repeats again from its fourth word on. One fixed substitute per word would
keep more repetition. But the prompts that agents send are public: compared with a
trace, they would reveal most of its dictionary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from mlxlab.errors import IntegrityError, TraceError
from mlxlab.traces.anonymize.bpe import PreToken, PreTokenKind
from mlxlab.traces.anonymize.substitutes import (
    Substitutes,
    TokenClass,
    begins_character,
)

__all__ = ["MEMORY", "Passage", "Place", "Substitution"]

#: The number of earlier words that a word's substitute depends on.
MEMORY = 3

#: The place and the words before a pre-token, and the digits directly before it.
_Context: TypeAlias = tuple[tuple[str, ...], str]


class Place(StrEnum):
    """The role of a text in a prompt, which decides how it is tokenized.

    Prompts that are equal up to some position have equal places up to there, so each
    place may have substitutes of its own.
    """

    TEXT = "text"
    NAME = "name"
    VALUE = "value"
    NUMBER = "number"

    @property
    def quoted(self) -> bool:
        """Whether a prompt holds the text as a JSON string."""
        return self in (Place.NAME, Place.VALUE)


class Passage(NamedTuple):
    """A text and its place."""

    text: str
    place: Place


class _Step(NamedTuple):
    """A pre-token of a passage; without a kind it stays."""

    pre_token: PreToken
    kind: TokenClass | None
    context: _Context


@dataclass(slots=True, eq=False)
class _Node:
    """A token in the trie of the pre-tokens in one context.

    Attributes:
        token: its id, -1 for the root.
        kind: the part of the text that it belongs to.
        substitute: the id that replaces it.
        head: see :meth:`Substitutes.candidates`.
    """

    token: int = -1
    kind: TokenClass = TokenClass.WORD
    substitute: int = -1
    head: bytes = b""
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def is_root(self) -> bool:
        return self.token < 0


class Substitution:
    """Substitutes for the words of some passages.

    Args:
        substitutes: the candidates of the tokenizer whose tokens are counted.
        passages: all passages that will be replaced.
        key: a secret; equal keys and passages give equal substitutes.

    Raises:
        TraceError: the passages have more different words than the vocabulary.
    """

    def __init__(
        self, substitutes: Substitutes, passages: Iterable[Passage], key: bytes
    ) -> None:
        self._substitutes = substitutes
        self._tokenizer = substitutes.tokenizer
        self._random = _KeyedRandom(key)
        self._roots: dict[_Context, _Node] = {}
        self._replaced: dict[tuple[_Context, str], str] = {}
        #: Tokens of unfinished characters in pre-tokens that stay.
        self._shared: set[int] = set()
        for passage in passages:
            for step in self._steps(passage):
                self._insert(step)
                self._shared.update(self._unfinished(step.pre_token))
        for root in self._roots.values():
            self._assign(root)

    def replace(self, passage: Passage) -> str:
        """Return the substitute for one of the passages.

        Raises:
            IntegrityError: a bug: the substitute has other tokens than were drawn.
        """
        joined = "".join(
            self._substitute(step) if step.kind else step.pre_token.text
            for step in self._steps(passage)
        )
        return str(json.loads(joined)) if passage.place.quoted else joined

    def _steps(self, passage: Passage) -> Iterator[_Step]:
        text, place = passage
        if place.quoted:
            text = json.dumps(text, ensure_ascii=False)
        words: tuple[str, ...] = (place.value,)
        digits = before = ""
        for pre_token in self._tokenizer.pre_tokenize(text):
            kind = _token_class(pre_token.kind, place, before.endswith("\\"))
            yield _Step(pre_token, kind, (words, digits))
            is_digit = pre_token.kind is PreTokenKind.DIGIT
            digits = digits + pre_token.text if is_digit else ""
            if kind and not is_digit:
                words = (*words, pre_token.text)[-MEMORY:]
            before = pre_token.text

    def _insert(self, step: _Step) -> None:
        if step.kind is None:
            return
        node = self._roots.setdefault(step.context, _Node())
        for token in step.pre_token.tokens:
            child = node.children.setdefault(token, _Node(token, step.kind))
            if step.kind is TokenClass.AFTER_BACKSLASH:
                child.kind = step.kind
            node = child

    def _unfinished(self, pre_token: PreToken) -> Iterator[int]:
        """Yield tokens that are unfinished characters, unless in a word."""
        if pre_token.kind is not PreTokenKind.WORD and not pre_token.text.isascii():
            data = self._tokenizer.tokens
            yield from (t for t in pre_token.tokens if begins_character(data[t]))

    def _assign(self, root: _Node) -> None:
        """Draw for every node below; draw again for one that leaves no choice below."""
        pending = [(root, root)]
        while pending:
            node, parent = pending.pop()
            refused: set[int] = set()
            while not self._draw_children(node):
                refused.add(node.substitute)
                if node.is_root or not self._redraw(node, parent, refused):
                    raise TraceError(
                        "too many different words for the bundled tokenizer; "
                        "give a shorter trace"
                    )
            pending += [(child, node) for child in node.children.values()]

    def _draw_children(self, node: _Node) -> bool:
        used: set[int] = set()
        pending: list[tuple[_Node, Sequence[int]]] = []
        for child in node.children.values():
            candidates, child.head = self._candidates(child, node)
            if candidates:
                pending.append((child, candidates))
            elif self._fits(node, child.token):
                child.substitute = child.token
                used.add(child.token)
            else:
                return False
        return all(
            self._draw(child, node, candidates, used) for child, candidates in pending
        )

    def _redraw(self, node: _Node, parent: _Node, refused: set[int]) -> bool:
        candidates, _ = self._candidates(node, parent)
        siblings = {child.substitute for child in parent.children.values()}
        return self._draw(node, parent, candidates, siblings | refused)

    def _draw(
        self, node: _Node, parent: _Node, candidates: Sequence[int], used: set[int]
    ) -> bool:
        """Choose a substitute and add it to ``used``; False if none is left."""
        is_word = node.kind in (TokenClass.WORD, TokenClass.AFTER_BACKSLASH)
        for token in self._random.order(candidates):
            equal = is_word and self._substitutes.have_equal_letters(token, node.token)
            if token not in used and not equal and self._fits(parent, token):
                break
        else:
            token = node.token  # the last candidate left may be the token itself
            if token in used or token not in candidates:
                return False
            if not self._fits(parent, token):
                return False
        node.substitute = token
        used.add(token)
        return True

    def _candidates(self, node: _Node, parent: _Node) -> tuple[Sequence[int], bytes]:
        return self._substitutes.candidates(
            node.token,
            node.kind,
            parent.head,
            first=parent.is_root,
            shared=node.token in self._shared,
        )

    def _fits(self, parent: _Node, token: int) -> bool:
        """Return whether the parent's token and ``token``, joined, encode to the two.

        If every two neighbours do, so does the whole: which of two adjacent merges
        comes first does not depend on tokens farther away.
        """
        tokens = (token,) if parent.is_root else (parent.substitute, token)
        return self._tokenizer.encode(*tokens) == tokens

    def _substitute(self, step: _Step) -> str:
        known = self._replaced.get((step.context, step.pre_token.text))
        if known is not None:
            return known
        node = self._roots[step.context]
        tokens: list[int] = []
        for token in step.pre_token.tokens:
            node = node.children[token]
            tokens.append(node.substitute)
        if self._tokenizer.encode(*tokens) != tuple(tokens):
            raise IntegrityError("a substitute has other tokens than were drawn for it")
        text = b"".join(map(self._tokenizer.tokens.__getitem__, tokens)).decode()
        self._replaced[step.context, step.pre_token.text] = text
        return text


class _KeyedRandom:
    """Random choices that depend on a key alone: BLAKE2b in counter mode."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32).digest()
        self._count = 0

    def order(self, items: Sequence[int]) -> Iterator[int]:
        """Yield items in random order; the first few may repeat, which is faster."""
        for _ in range(min(len(items), 16)):
            yield items[self._below(len(items))]
        rest = list(items)
        for last in range(len(rest) - 1, -1, -1):
            chosen = self._below(last + 1)
            rest[chosen], rest[last] = rest[last], rest[chosen]
            yield rest[last]

    def _below(self, stop: int) -> int:
        self._count += 1
        count = self._count.to_bytes(8, "big")
        digest = hashlib.blake2b(count, key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") % stop


def _token_class(
    kind: PreTokenKind, place: Place, after_backslash: bool
) -> TokenClass | None:
    """Return the class of a pre-token's tokens, None if they stay."""
    match kind:
        case PreTokenKind.WORD if place is not Place.NUMBER:
            return TokenClass.AFTER_BACKSLASH if after_backslash else TokenClass.WORD
        case PreTokenKind.DIGIT:
            return TokenClass.NUMBER if place is Place.NUMBER else TokenClass.DIGIT
        case PreTokenKind.ESCAPE if not place.quoted:
            # In JSON an escape is a control character, which stays.
            return TokenClass.ESCAPE
    return None
