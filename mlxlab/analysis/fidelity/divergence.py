"""How far two predictions of the same tokens are apart, position by position.

Names and definitions are those of llama.cpp's ``llama-perplexity --kl-divergence``.
Numbers in, numbers out: knows nothing of models, prompts and strategies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxlab.prompt import Tokens

__all__ = ["Divergence", "diverge", "log_probabilities"]

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """Between a reference and another prediction; arrays of shape ``[n]``.

    Attributes:
        kld: KL divergence of the other from the reference, in nats, 0 at least.
        same_top: whether both find the same token most likely.
        delta_p: the other's probability of the token that followed, less the
            reference's; where none is known, of the reference's top token.
        surprisal: nats, the other's negative log probability of the token that
            followed; NaN where none is known.
    """

    kld: Floats
    same_top: NDArray[np.bool_]
    delta_p: Floats
    surprisal: Floats


def diverge(
    reference: NDArray[np.floating[Any]],
    other: NDArray[np.floating[Any]],
    answer: Tokens,
) -> Divergence:
    """Compare two predictions.

    Args:
        reference: logits, shape ``[n, vocabulary]``.
        other: logits of the same shape.
        answer: the ids that followed, one a row; may be shorter or longer.
    """
    p, q = log_probabilities(reference), log_probabilities(other)
    top = p.argmax(axis=-1)
    known = answer[: len(top)]
    tokens = np.concatenate([known, top[len(known) :]])
    rows = np.arange(len(top))
    surprisal = -q[rows, tokens]
    surprisal[len(known) :] = np.nan
    return Divergence(
        kld=_kld(p, q),
        same_top=top == q.argmax(axis=-1),
        delta_p=np.exp(q[rows, tokens]) - np.exp(p[rows, tokens]),
        surprisal=surprisal,
    )


def log_probabilities(logits: NDArray[np.floating[Any]]) -> Floats:
    """Logits as natural logarithms of probabilities, row by row, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _kld(p: Floats, q: Floats) -> Floats:
    weights = np.exp(p)
    # What has no weight adds nothing, however unlikely the other finds it.
    ratio = np.subtract(p, q, where=weights > 0, out=np.zeros_like(p))
    # The sum for nearly equal distributions may fall below 0 by rounding.
    kld: Floats = (weights * ratio).sum(axis=-1)
    return kld.clip(min=0.0)
