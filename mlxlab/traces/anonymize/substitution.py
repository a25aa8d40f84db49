"""Replaces the words of texts; their tokens keep number and shared prefixes.

Letters and digits are replaced, the rest stays, so that the result is cut into
pieces at the same places. Each token of a word becomes another one, drawn at random
for the tokens before it in the word and the :data:`MEMORY` words before that:
prefix-preserving encryption (Xu et al., Crypto-PAn, 2002) over tokens, not bits.

Hence texts with a common prefix keep exactly that prefix, and what repeats elsewhere
repeats again from its fourth word on. One fixed substitute per word would keep more,
but agents send their publisher's prompts, which are public: laid beside a trace,
they would give away most of its dictionary.

Knows nothing of requests and traces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from mlxlab.errors import IntegrityError, TraceError
from mlxlab.traces.anonymize.bpe import Kind, Piece
from mlxlab.traces.anonymize.substitutes import Candidates, Sort, begins_character

__all__ = ["MEMORY", "Passage", "Place", "Substitution"]

#: How many words before a word its substitute depends on.
MEMORY = 3

#: The place and the words before a piece, and the digits directly before it.
_Context: TypeAlias = tuple[tuple[str, ...], str]


class Place(StrEnum):
    """What a text is in a prompt, which decides how it is cut.

    Prompts that are equal up to some position have the same place there, so each
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
    """A piece of a passage; without a sort it stays."""

    piece: Piece
    sort: Sort | None
    context: _Context


@dataclass(slots=True, eq=False)
class _Node:
    """The end of a path of tokens that pieces in one context begin with.

    Attributes:
        token: -1 for the root.
        sort: what the token is part of.
        out: what replaces the token.
        head: see :meth:`Candidates.of`.
    """

    token: int = -1
    sort: Sort = Sort.WORD
    out: int = -1
    head: bytes = b""
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def is_root(self) -> bool:
        return self.token < 0


class Substitution:
    """Substitutes for the words of some passages.

    Args:
        candidates: of the tokenizer whose tokens are counted.
        passages: all that will be replaced.
        key: secret; equal keys and passages give equal substitutes.

    Raises:
        TraceError: more different words than the vocabulary can keep apart.
    """

    def __init__(
        self, candidates: Candidates, passages: Iterable[Passage], key: bytes
    ) -> None:
        self._candidates = candidates
        self._cutter = candidates.cutter
        self._draws = _Draws(key)
        self._roots: dict[_Context, _Node] = {}
        self._substitutes: dict[tuple[_Context, str], str] = {}
        #: Tokens of unfinished characters in pieces that stay.
        self._shared: set[int] = set()
        for passage in passages:
            for step in self._steps(passage):
                self._insert(step)
                self._shared.update(self._unfinished(step.piece))
        for root in self._roots.values():
            self._assign(root)

    def replace(self, passage: Passage) -> str:
        """The substitute for one of the passages given.

        Raises:
            IntegrityError: a bug, the substitute has other tokens than meant.
        """
        joined = "".join(
            self._substitute(step) if step.sort else step.piece.text
            for step in self._steps(passage)
        )
        return str(json.loads(joined)) if passage.place.quoted else joined

    def _steps(self, passage: Passage) -> Iterator[_Step]:
        text, place = passage
        if place.quoted:
            text = json.dumps(text, ensure_ascii=False)
        words: tuple[str, ...] = (place.value,)
        digits = before = ""
        for piece in self._cutter.cut(text):
            sort = _sort(piece.kind, place, before.endswith("\\"))
            yield _Step(piece, sort, (words, digits))
            is_digit = piece.kind is Kind.DIGIT
            digits = digits + piece.text if is_digit else ""
            if sort and not is_digit:
                words = (*words, piece.text)[-MEMORY:]
            before = piece.text

    def _insert(self, step: _Step) -> None:
        if step.sort is None:
            return
        node = self._roots.setdefault(step.context, _Node())
        for token in step.piece.tokens:
            child = node.children.setdefault(token, _Node(token, step.sort))
            if step.sort is Sort.AFTER_BACKSLASH:
                child.sort = step.sort
            node = child

    def _unfinished(self, piece: Piece) -> Iterator[int]:
        """Tokens with the first bytes of a character in a piece that is no word."""
        if piece.kind is not Kind.WORD and not piece.text.isascii():
            data = self._cutter.tokens
            yield from (t for t in piece.tokens if begins_character(data[t]))

    def _assign(self, root: _Node) -> None:
        """Draw for every node below; one that leaves its children no choice, again."""
        pending = [(root, root)]
        while pending:
            node, parent = pending.pop()
            refused: set[int] = set()
            while not self._draw_children(node):
                refused.add(node.out)
                if node.is_root or not self._redraw(node, parent, refused):
                    raise TraceError(
                        "too many different words for the bundled tokenizer; "
                        "give a shorter trace"
                    )
            pending += [(child, node) for child in node.children.values()]

    def _draw_children(self, node: _Node) -> bool:
        used: set[int] = set()
        moving: list[tuple[_Node, Sequence[int]]] = []
        for child in node.children.values():
            candidates, child.head = self._options(child, node)
            if candidates:
                moving.append((child, candidates))
            elif self._fits(node, child.token):
                child.out = child.token
                used.add(child.token)
            else:
                return False
        return all(
            self._draw(child, node, candidates, used) for child, candidates in moving
        )

    def _redraw(self, node: _Node, parent: _Node, refused: set[int]) -> bool:
        candidates, _ = self._options(node, parent)
        siblings = {child.out for child in parent.children.values()}
        return self._draw(node, parent, candidates, siblings | refused)

    def _draw(
        self, node: _Node, parent: _Node, candidates: Sequence[int], used: set[int]
    ) -> bool:
        """Choose ``node.out`` and add it to ``used``; False if nothing is left."""
        is_word = node.sort in (Sort.WORD, Sort.AFTER_BACKSLASH)
        for token in self._draws.order(candidates):
            alike = is_word and self._candidates.alike(token, node.token)
            if token not in used and not alike and self._fits(parent, token):
                break
        else:
            token = node.token  # The last that is left may be the token itself.
            if token in used or token not in candidates:
                return False
            if not self._fits(parent, token):
                return False
        node.out = token
        used.add(token)
        return True

    def _options(self, node: _Node, parent: _Node) -> tuple[Sequence[int], bytes]:
        return self._candidates.of(
            node.token,
            node.sort,
            parent.head,
            first=parent.is_root,
            shared=node.token in self._shared,
        )

    def _fits(self, parent: _Node, token: int) -> bool:
        """Whether the text of the token after its parent's is cut into the two.

        Tokens stay as they are when every two neighbours do: which of two adjacent
        merges comes first does not depend on what is farther away.
        """
        tokens = (token,) if parent.is_root else (parent.out, token)
        return self._cutter.encode(*tokens) == tokens

    def _substitute(self, step: _Step) -> str:
        known = self._substitutes.get((step.context, step.piece.text))
        if known is not None:
            return known
        node = self._roots[step.context]
        tokens: list[int] = []
        for token in step.piece.tokens:
            node = node.children[token]
            tokens.append(node.out)
        if self._cutter.encode(*tokens) != tuple(tokens):
            raise IntegrityError("a substitute has other tokens than were drawn for it")
        text = b"".join(map(self._cutter.tokens.__getitem__, tokens)).decode()
        self._substitutes[step.context, step.piece.text] = text
        return text


class _Draws:
    """Random choices out of one key: BLAKE2b in counter mode."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32).digest()
        self._count = 0

    def order(self, items: Sequence[int]) -> Iterator[int]:
        """Items in random order; the first few may repeat, which is much faster."""
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


def _sort(kind: Kind, place: Place, after_backslash: bool) -> Sort | None:
    """What a piece is replaced as; None if it stays."""
    match kind:
        case Kind.WORD if place is not Place.NUMBER:
            return Sort.AFTER_BACKSLASH if after_backslash else Sort.WORD
        case Kind.DIGIT:
            return Sort.NUMBER if place is Place.NUMBER else Sort.DIGIT
        case Kind.ESCAPE if not place.quoted:
            # In JSON it is a control character.
            return Sort.ESCAPE
    return None
