"""Encoding: a text's ids, by a model's tokenizer, each piece of it worked out once.

An agent's requests repeat nearly all of their text. Tokenizers look for special tokens
such as ``<|im_end|>`` before anything else and never merge across them, so what stands
between two of them has the same ids wherever it stands, and can be remembered.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray

from mlxlab.prompt import Tokens

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Encoder", "join_encoded"]

#: Ids, and the first character of each.
Encoded = tuple[Tokens, NDArray[np.int64]]

#: Tokens whose pieces are remembered: a hundred long prompts, some 35 MB.
_REMEMBERED = 2 << 20

#: What is tried out around every special token.
_TRIAL = "Once 1,200\n  \u00e9 {0}upon{0} a\n\n{0}{0}\ttime {0}"


def join_encoded(pieces: Iterable[Encoded]) -> Encoded:
    """One after the other."""
    ids, starts = zip(*pieces, strict=True)
    return np.concatenate(ids), np.concatenate(starts)


class Encoder:
    """Encodes texts with one tokenizer. Threads may share it.

    Args:
        tokenizer: a fast one. What its special tokens do not cut is encoded whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()
        self._pieces: LRUCache[str, Encoded] = LRUCache(
            _REMEMBERED, getsizeof=lambda encoded: len(encoded[0]) + 1
        )
        ends = _find_ends(tokenizer.added_tokens_decoder.values())
        self._ends = re.compile("|".join(map(re.escape, ends))) if ends else None
        # A tokenizer may treat the beginning of a text unlike that of a piece.
        trial = "".join(map(_TRIAL.format, ends))
        pieces, whole = self.encode(trial), self._whole(trial)
        if not all(np.array_equal(pieces[i], whole[i]) for i in (0, 1)):
            self._ends = None

    def encode(self, text: str) -> Encoded:
        """Ids of a text, nothing added to it, and each one's first character."""
        if self._ends is None:
            return self._whole(text)
        pieces: list[Encoded] = []
        start = 0
        for stop in (*(end.end() for end in self._ends.finditer(text)), len(text)):
            ids, starts = self._piece(text[start:stop])
            pieces.append((ids, starts + start))
            start = stop
        return join_encoded(pieces)

    @cachedmethod(lambda self: self._pieces, lock=lambda self: self._lock)
    def _piece(self, text: str) -> Encoded:
        return self._whole(text)

    def _whole(self, text: str) -> Encoded:
        encoding = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids = np.asarray(encoding["input_ids"], dtype=np.int32)
        offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64)
        return ids, offsets.reshape(-1, 2)[:, 0]


def _find_ends(added: Collection[AddedToken]) -> list[str]:
    """Special tokens that are found in a text whatever stands around them."""
    if any(token.single_word for token in added):
        return []
    names = sorted(token.content for token in added)
    longer = {a for a, b in pairwise(names) if b.startswith(a)}
    inner = set("".join(name[1:] for name in names))
    return [
        token.content
        for token in added
        if token.special
        and not (token.normalized or token.lstrip or token.rstrip)
        and token.content not in longer
        and token.content[0] not in inner
    ]
