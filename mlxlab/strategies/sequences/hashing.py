"""Hashes and comparisons of token ids that several strategies share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mlxlab.prompt import Tokens, common_prefix

__all__ = ["chained_digests", "lost_tokens", "window_hashes"]

DIGEST_BYTES = 16

BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 1 << 64)
MIX = 0xBF58476D1CE4E5B9


def chained_digests(tokens: Tokens, block: int) -> Iterator[bytes]:
    """Yield one digest per whole block of ``block`` ids; a shorter tail has none.

    Each digest covers its block and everything before it, as in vLLM's prefix
    caching. So equal digests mean equal prefixes (128 bits of BLAKE2b).
    """
    data = np.ascontiguousarray(tokens).view(np.uint8).data
    step = block * tokens.itemsize
    chain = blake2b(digest_size=DIGEST_BYTES)
    for start in range(0, len(tokens) // block * step, step):
        chain.update(data[start : start + step])
        yield chain.digest()


def lost_tokens(dropped: Iterable[Tokens], kept: Iterable[Tokens]) -> int:
    """Count positions of ``dropped`` sequences that no ``kept`` sequence restores.

    A position that several dropped sequences share counts once.
    """
    covering = list(kept)
    lost = 0
    for tokens in dropped:
        covered = max((common_prefix(tokens, other) for other in covering), default=0)
        lost += len(tokens) - covered
        covering.append(tokens)
    return lost


def window_hashes(tokens: Tokens, width: int) -> NDArray[np.uint64]:
    """Return a hash of every ``width`` tokens, shape ``[len(tokens) - width + 1]``.

    The hash is a polynomial of mixed ids, modulo 2^64. The base is odd and so has an
    inverse, which makes windows differences of prefix sums.
    """
    if len(tokens) < width:
        return np.empty(0, np.uint64)
    mixed = tokens.astype(np.uint64) * np.uint64(MIX)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(BASE)
    sums = np.zeros(len(tokens) + 1, np.uint64)
    np.cumsum(mixed * _powers(BASE, len(tokens)), out=sums[1:])
    windows = sums[width:] - sums[:-width]
    return windows * _powers(INVERSE, len(windows))


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    return np.cumprod(np.full(count, base, np.uint64), dtype=np.uint64)
