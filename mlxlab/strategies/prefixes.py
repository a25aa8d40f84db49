"""Prefix arithmetic that several strategies share.

Knows token ids only: no handles, no slots, no policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np

from mlxlab.prompt import Tokens, common_prefix

__all__ = ["chained_digests", "lost_tokens"]

DIGEST_BYTES = 16


def chained_digests(tokens: Tokens, block: int) -> Iterator[bytes]:
    """One digest per whole block of ``block`` ids; the rest has none.

    Each digest stands for its block and everything before it, as in vLLM's prefix
    caching, so equal digests mean equal prefixes (128 bits of BLAKE2b).
    """
    data = np.ascontiguousarray(tokens).view(np.uint8).data
    step = block * tokens.itemsize
    chain = blake2b(digest_size=DIGEST_BYTES)
    for start in range(0, len(tokens) // block * step, step):
        chain.update(data[start : start + step])
        yield chain.digest()


def lost_tokens(dropped: Iterable[Tokens], kept: Iterable[Tokens]) -> int:
    """Positions of ``dropped`` sequences that no ``kept`` sequence can restore.

    A position that several dropped sequences share counts once.
    """
    covering = list(kept)
    lost = 0
    for tokens in dropped:
        covered = max((common_prefix(tokens, other) for other in covering), default=0)
        lost += len(tokens) - covered
        covering.append(tokens)
    return lost
