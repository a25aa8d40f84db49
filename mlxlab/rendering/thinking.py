"""Signed thinking: its generated ids survive the way through a client, id for id.

A client returns a thinking block as it received it. The text does not show how the
model cut it into tokens, and may have been left out. So the signature of the block
holds the ids. In the next prompt they replace the text that the template prints for
the block, from its opening tag to its closing one. The prompt then extends the cached
tokens, and no server has to remember a conversation.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Tokens
from mlxlab.rendering.conversation import Conversation, Part, Turn
from mlxlab.rendering.marks import Extent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "SIGNATURE_PREFIX",
    "SignedThinking",
    "Splice",
    "find_splices",
    "read_signature",
    "read_thinking",
    "sign",
    "unpack_signature",
]

SIGNATURE_PREFIX = "mlxlab1."
_MAX_BYTES = 4 * 2**20


def sign(ids: Iterable[int], tokenizer: str) -> str:
    """Return the signature of thinking.

    Args:
        ids: from the opening tag to the closing one, both included.
        tokenizer: digest of the tokenizer of these ids.
    """
    data = np.fromiter(ids, dtype="<i4").tobytes()
    packed = zlib.compress(tokenizer.encode() + b"\0" + data, level=9)
    return SIGNATURE_PREFIX + urlsafe_b64encode(packed).decode()


def read_signature(signature: str, tokenizer: str) -> Tokens | None:
    """Read the ids in a signature.

    Args:
        signature: as a client returned it, possibly from another server or damaged.
        tokenizer: digest of the tokenizer that the ids are wanted for.

    Returns:
        int32 ids; None if the signature is not from mlxlab or for another tokenizer.
    """
    owner, ids = unpack_signature(signature) or ("", None)
    return ids if owner == tokenizer else None


def unpack_signature(signature: str) -> tuple[str, Tokens] | None:
    """Read the tokenizer's digest and the int32 ids in a signature.

    Returns:
        None if the signature is not from mlxlab, or damaged.
    """
    if not signature.startswith(SIGNATURE_PREFIX):
        return None
    try:
        packed = urlsafe_b64decode(signature.removeprefix(SIGNATURE_PREFIX))
        unpack = zlib.decompressobj()
        data = unpack.decompress(packed, _MAX_BYTES)
        owner, _, ids = data.partition(b"\0")
        tokenizer = owner.decode()
    except (ValueError, binascii.Error, zlib.error):
        return None
    if not unpack.eof or len(ids) % 4:
        return None
    return tokenizer, np.frombuffer(ids, dtype="<i4").astype(np.int32)


@dataclass(frozen=True, slots=True)
class Splice:
    """Ids that replace the characters ``[start, stop)`` of a rendered text.

    Attributes:
        start: first character of the opening tag.
        inside: first character of the thinking itself.
        stop: end of the closing tag.
        tokens: int32 ids, shape ``[n]``, both tags included.
    """

    start: int
    inside: int
    stop: int
    tokens: Tokens

    @property
    def starts(self) -> NDArray[np.int64]:
        """A character for each id; the ids between the tags share one."""
        starts = np.full(len(self.tokens), self.inside, dtype=np.int64)
        starts[0] = self.start
        return starts


@dataclass(frozen=True, slots=True)
class SignedThinking:
    """The content of a valid signature.

    Attributes:
        tokens: int32 ids with both tags.
        opening: text of the opening tag.
        closing: text of the closing tag.
        text: text between the tags.
    """

    tokens: Tokens
    opening: str
    closing: str
    text: str

    def find(self, extent: Extent, text: str) -> Splice | None:
        """Find this thinking in a rendered text, given the extent of its block."""
        start = text.rfind(self.opening, 0, extent.start + len(self.opening))
        end = text.find(self.closing, extent.stop - len(self.closing))
        inside = start + len(self.opening)
        # Between the tags the template prints this thinking and white space.
        if start < 0 or end < 0 or text[inside:end].strip() != self.text.strip():
            return None
        first = max(inside, extent.start)
        return Splice(start, first, end + len(self.closing), self.tokens)


def read_thinking(
    conversation: Conversation, model: ModelFolder
) -> tuple[Conversation, Mapping[str, SignedThinking]]:
    """Read the signatures of a conversation's thinking blocks.

    Args:
        conversation: as the client sent it.
        model: the model that the prompt is for.

    Returns:
        The conversation, with the text of thinking that the client was not sent; and
        signed thinking by label. Edited blocks and blocks with a foreign signature
        stay as they are.
    """
    found: dict[str, SignedThinking] = {}

    def read(turn: Turn) -> Turn:
        part = turn.thinking
        signed = _signed(part, model) if part and part.signature else None
        if part is None or signed is None:
            return turn
        found[part.label] = signed
        return replace(turn, thinking=replace(part, text=signed.text))

    turns = tuple(map(read, conversation.turns))
    return replace(conversation, turns=turns), found


def find_splices(
    signed: Mapping[str, SignedThinking], extents: Iterable[Extent], text: str
) -> Iterator[Splice]:
    """Find signed thinking in a rendered text, in order.

    Args:
        signed: by label.
        extents: of the blocks in ``text``.
        text: as the template printed it.
    """
    for extent in extents:
        thinking = signed.get(extent.label)
        splice = thinking.find(extent, text) if thinking else None
        if splice:
            yield splice


def _signed(part: Part, model: ModelFolder) -> SignedThinking | None:
    tokenizer = model.tokenizer
    tokens = read_signature(part.signature, model.tokenizer_digest)
    if tokens is None or len(tokens) < 2 or not _are_ids(tokens, tokenizer):
        return None
    opening, text, closing = (
        str(tokenizer.decode(ids)) for ids in (tokens[:1], tokens[1:-1], tokens[-1:])
    )
    text = text.strip("\r\n")
    if part.text not in ("", text):
        return None
    return SignedThinking(tokens, opening, closing, text)


def _are_ids(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool((tokens >= 0).all() and (tokens < len(tokenizer)).all())
