"""The encoder: turns text into token ids, and encodes each piece of text once.

An agent's requests repeat nearly all of their text. Tokenizers look for special tokens
such as ``<|im_end|>`` before anything else, and never merge across them. So the text
between two special tokens has the same ids wherever it stands, and can be cached.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from copy import copy
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Self

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from mlxlab.errors import ModelError
from mlxlab.limits import LONG_TEXT
from mlxlab.models.refusal import refusing
from mlxlab.prompt import Tokens

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import BatchEncoding, PreTrainedTokenizerBase

__all__ = ["Encoded", "Encoder", "join_encoded"]

#: int32 ids, and the first character of each, both of shape ``[n]``.
Encoded = tuple[Tokens, NDArray[np.int64]]

#: Bytes of the cache: eighty long prompts.
_CACHED_BYTES = 32 * 2**20
#: Bytes that a piece takes beside its text and ids, as measured.
_PIECE = 500

#: Characters that are counted at a time, and tokens that a cut between two may add.
_CHUNK, _CUT = 2**16, 16

#: Text put around every special token to test whether pieces encode like the whole.
_SAMPLE = "Once 1,200\n  \u00e9 {0}upon{0} a\n\n{0}{0}\ttime {0}"


def join_encoded(pieces: Iterable[Encoded]) -> Encoded:
    """Concatenate encoded pieces."""
    ids, starts = zip(*pieces, strict=True)
    return np.concatenate(ids), np.concatenate(starts)


class Encoder:
    """Encodes texts with one tokenizer. Threads may share it.

    Args:
        tokenizer: a fast tokenizer. If its special tokens do not separate text
            safely, every text is encoded whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._most: int | None = None
        self._lock = Lock()
        self._cache = _new_cache()
        separators = _find_separators(tokenizer.added_tokens_decoder.values())
        pattern = "|".join(map(re.escape, separators))
        self._separator = re.compile(pattern) if separators else None
        # Some tokenizers treat the beginning of a text unlike its other words.
        sample = "".join(map(_SAMPLE.format, separators))
        pieces, whole = self.encode(sample), self._encode_whole(sample)
        if not all(np.array_equal(pieces[i], whole[i]) for i in (0, 1)):
            self._separator = None

    def limited(self, most: int) -> Self:
        """Return this encoder for prompts of at most this number of tokens.

        It has a cache of its own. It gives up on a long text once its tokens are too
        many, because each may take a kilobyte while the text is encoded.
        """
        other = copy(self)
        other._cache = _new_cache()
        other._most = most
        return other

    def encode(self, text: str) -> Encoded:
        """Return the ids of a text, without added tokens, and their characters.

        Raises:
            ModelError: the text is too long, see :meth:`limited`.
        """
        if self._separator is None:
            self._check_length(text)
            return self._encode_whole(text)
        pieces: list[Encoded] = []
        start = tokens = 0
        stops = (match.end() for match in self._separator.finditer(text))
        for stop in (*stops, len(text)):
            ids, starts = self._encode_piece(text[start:stop])
            pieces.append((ids, starts + start))
            start = stop
            tokens += len(ids)
            if len(text) > LONG_TEXT:
                self._refuse_over(tokens, stop / len(text))
        return join_encoded(pieces)

    def _encode_piece(self, text: str) -> Encoded:
        with self._lock:
            known = self._cache.get(text)
        if known is not None:
            return known
        self._check_length(text)
        encoded = self._encode_whole(text)
        with self._lock, suppress(ValueError):  # larger than the cache
            self._cache[text] = encoded
        return encoded

    def _check_length(self, text: str) -> None:
        """Count a long text in chunks, which takes little memory."""
        if self._most is None or len(text) <= LONG_TEXT:
            return
        tokens = 0
        for start in range(0, len(text), _CHUNK):
            chunk = text[start : start + _CHUNK]
            ids = self._tokenized(chunk)["input_ids"]
            tokens += max(len(ids) - _CUT, 0)
            self._refuse_over(tokens, (start + len(chunk)) / len(text))

    def _refuse_over(self, tokens: int, share: float) -> None:
        """Refuse a text if the tokens of a share of it are too many.

        Clients read the numbers to compact by, so all of its tokens are estimated.
        """
        if self._most is not None and tokens > self._most:
            raise ModelError(
                f"prompt is too long: {int(tokens / share)} tokens > {self._most} "
                "maximum"
            )

    def _encode_whole(self, text: str) -> Encoded:
        encoding = self._tokenized(text, return_offsets_mapping=True)
        ids = np.asarray(encoding["input_ids"], dtype=np.int32)
        offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64)
        return ids, offsets.reshape(-1, 2)[:, 0].copy()

    def _tokenized(self, text: str, **options: bool) -> BatchEncoding:
        # The pattern of a tokenizer may give up on a text, which is a panic.
        name = self._tokenizer.name_or_path
        with refusing(name, "its tokenizer cannot encode this text"):
            encoding: BatchEncoding = self._tokenizer(
                text, add_special_tokens=False, **options
            )
        return encoding


def _new_cache() -> LRUCache[str, Encoded]:
    return LRUCache(_CACHED_BYTES, getsizeof=_size)


def _size(encoded: Encoded) -> int:
    """Return the bytes that a piece takes in a cache, its text included."""
    ids, starts = encoded
    characters = int(starts[-1]) + 1 if len(starts) else 0
    return _PIECE + ids.nbytes + starts.nbytes + characters


def _find_separators(added: Collection[AddedToken]) -> list[str]:
    """Return the special tokens that are recognised in any surrounding text."""
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
