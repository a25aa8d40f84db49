"""Signatures of thinking blocks: they hold the very ids that were generated.

A client gives a thinking block back as it got it. Its text alone does not tell how a
model cut it into tokens, and may have been left out; the signature does. So the next
prompt extends what is cached, and no server has to remember anything.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable

import numpy as np

from mlxlab.prompt import Tokens

__all__ = ["read_signature", "sign"]

_PREFIX = "mlxlab1."
_MAX_BYTES = 4 * 2**20


def sign(ids: Iterable[int], tokenizer: str) -> str:
    """The signature of reasoning.

    Args:
        ids: from the opening tag to the closing one, both included.
        tokenizer: digest of the tokenizer that the ids are of.
    """
    data = np.fromiter(ids, dtype="<i4").tobytes()
    packed = zlib.compress(tokenizer.encode() + b"\0" + data, level=9)
    return _PREFIX + urlsafe_b64encode(packed).decode()


def read_signature(signature: str, tokenizer: str) -> Tokens | None:
    """The ids that were signed, int32; None if it is not ours or of other ids.

    Args:
        signature: as it came back, possibly from another server or damaged.
        tokenizer: digest of the tokenizer that the ids are wanted for.
    """
    if not signature.startswith(_PREFIX):
        return None
    try:
        packed = urlsafe_b64decode(signature.removeprefix(_PREFIX))
        unpack = zlib.decompressobj()
        data = unpack.decompress(packed, _MAX_BYTES)
    except (ValueError, binascii.Error, zlib.error):
        return None
    owner, _, ids = data.partition(b"\0")
    if not unpack.eof or owner != tokenizer.encode() or len(ids) % 4:
        return None
    return np.frombuffer(ids, dtype="<i4").astype(np.int32)
