"""Keeps secrets out of generated ids, which decode to what a model wrote.

Ids of a secret give way to ids of its placeholder. A later request repeats an answer's
text, which a template prints and a tokenizer cuts: so ids that were that cut become the
cut of the masked text, and the next prompt still extends them. Signed reasoning is
repeated id for id: its number of ids stays, and they say the masked text, cut finer or
coarser than a tokenizer would.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from mlxlab.rendering.thinking import sign, unpack_signature
from mlxlab.traces.masking import mask_text, placeholder
from mlxlab.traces.schema import Generated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Characters that a secret and its placeholder may happen to have in common.
_NEAR = 16

__all__ = ["Tokenizers", "find_tokenizer", "mask_generated", "mask_signature"]

Tokenizers: TypeAlias = "Callable[[str], PreTrainedTokenizerBase | None]"
"""The tokenizer that has a digest, None if it is not known."""


def find_tokenizer(digest: str) -> PreTrainedTokenizerBase | None:
    """The bundled model's tokenizer, if the digest is its."""
    from mlxlab.models.folder import find_model

    model = find_model()
    return model.tokenizer if model.tokenizer_digest == digest else None


def mask_signature(
    signature: str, tokenizers: Tokenizers, *, is_shown: bool = False
) -> str:
    """The signature without secrets in its ids, the same where there is none.

    Args:
        signature: of any server; those of others hold no ids of ours.
        tokenizers: of the models whose ids can be read.
        is_shown: whether the text stands beside it and holds no secret. Ids that cannot
            be read are believed to say the same; without that they are left out.

    Returns:
        An empty one if the ids cannot be kept: then the text has to do.
    """
    digest, ids = unpack_signature(signature) or ("", None)
    if ids is None:
        return signature
    tokenizer = tokenizers(digest)
    if tokenizer is None:
        return signature if is_shown else ""
    old = tuple(ids.tolist())
    new = _IdMask(tokenizer).mask(old, [old])
    if new is None:
        return ""
    return signature if new == old else sign(new, digest)


def mask_generated(
    generated: Generated,
    tokenizers: Tokenizers,
    *,
    signatures: Iterable[str] = (),
    secrets: Sequence[str] = (),
    is_shown: bool = False,
) -> Generated:
    """What was generated, without secrets, and marked if it had some.

    Args:
        generated: as the model wrote it.
        tokenizers: of the models whose ids can be read.
        signatures: of the answer's reasoning, as they were signed.
        secrets: that were found in the answer's text, where a key beside them may say
            what they are.
        is_shown: as for :func:`mask_signature`, of all of the answer.

    Returns:
        No ids if they cannot be kept: then the text has to do.
    """
    tokenizer = tokenizers(generated.tokenizer)
    if tokenizer is None:
        ids = generated.ids if is_shown else None
    else:
        unpacked = [unpack_signature(signature) for signature in signatures]
        signed = [tuple(found[1].tolist()) for found in unpacked if found]
        ids = _IdMask(tokenizer, secrets).mask(generated.ids, signed)
    if ids == generated.ids:
        return generated
    return generated.model_copy(update={"ids": ids or (), "redacted": True})


class _IdMask:
    """Masks ids of one tokenizer.

    Args:
        tokenizer: a fast one.
        secrets: further texts to mask.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, secrets: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._secrets = secrets

    def mask(
        self, ids: tuple[int, ...], signed: Iterable[tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        """Ids without secrets, None if that cannot be done.

        Args:
            ids: what a model wrote.
            signed: ids of reasoning, whose number is to stay.
        """
        kept = [piece for other in signed for _, piece in self._pieces(other)]
        masked: list[int] = []
        for is_tag, piece in self._pieces(ids):
            # The prompt may hold the first of what was signed.
            keep = any(other[-len(piece) :] == piece for other in kept)
            new = piece if is_tag else self._masked_piece(piece, keep_count=keep)
            if new is None:
                return None
            masked += new
        return tuple(masked)

    def _pieces(self, ids: tuple[int, ...]) -> Iterator[tuple[bool, tuple[int, ...]]]:
        """Runs of tags and of what is between them, which tokenizers cut by itself."""
        for is_tag, run in groupby(ids, self._added.__contains__):
            yield is_tag, tuple(run)

    def _masked_piece(
        self, piece: tuple[int, ...], *, keep_count: bool
    ) -> tuple[int, ...] | None:
        text = self._text(piece)
        clean = self._masked(text)
        if clean == text:
            return piece
        choices = [self._cut(clean)]
        if keep_count or self._cut(text) != piece:
            choices.insert(0, self._refilled(piece, text, clean))
        return next((ids for ids in choices if self._text(ids) == clean), None)

    def _refilled(
        self, piece: tuple[int, ...], text: str, clean: str
    ) -> tuple[int, ...]:
        """The ids, those of a secret replaced, by as many others if that can be done.

        Args:
            piece: ids.
            text: what they say.
            clean: what they are to say.
        """
        filled: list[int] = []
        done = 0
        for start, stop in _differences(text, clean):
            i = max(done, bisect_right(range(len(piece)), start, key=self._end(piece)))
            j = bisect_left(range(len(piece)), stop, key=self._end(piece)) + 1
            begin, end = (len(self._text(piece[:n])) for n in (i, j))
            filled += [*piece[done:i], *self._fill(clean[begin:end], j - i)]
            done = j
        return (*filled, *piece[done:])

    def _end(self, piece: tuple[int, ...]) -> Callable[[int], int]:
        """Where the text of an id ends."""
        return lambda index: len(self._text(piece[: index + 1]))

    def _fill(self, text: str, count: int) -> tuple[int, ...]:
        """A text's ids, ``count`` of them if it can be cut into that many."""

        def spelt(characters: int) -> tuple[int, ...]:
            single = (id for c in text[:characters] for id in self._cut(c))
            return (*single, *self._cut(text[characters:]))

        # The more is spelt out, the more ids there are, but for a few.
        near = bisect_left(range(len(text)), count, key=lambda n: len(spelt(n)))
        tries = range(max(0, near - 8), min(len(text), near + 8) + 1)
        exact = (ids for ids in map(spelt, tries) if len(ids) == count)
        return next(exact, spelt(0))

    def _masked(self, text: str) -> str:
        clean, _ = mask_text(text)
        for secret in self._secrets:
            for form in {secret, json.dumps(secret)[1:-1]}:
                clean = clean.replace(form, placeholder(len(form)))
        return clean

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _cut(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def _differences(old: str, new: str) -> Iterator[tuple[int, int]]:
    """Where texts differ, runs that lie close together as one."""
    if len(old) != len(new):
        yield 0, len(new)
        return
    pairs = enumerate(zip(old, new, strict=True))
    places = [index for index, (a, b) in pairs if a != b]
    start = stop = places[0]
    for place in places[1:]:
        if place > stop + _NEAR:
            yield start, stop + 1
            start = place
        stop = place
    yield start, stop + 1
