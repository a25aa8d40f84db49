"""Measures how far apart two predictions of the same tokens are, by position.

Names and definitions follow llama.cpp's ``llama-perplexity --kl-divergence``.
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
    """The divergence of a prediction from a reference; arrays of shape ``[n]``.

    Attributes:
        kld: KL divergence of the prediction from the reference, in nats, at least 0.
        same_top: whether both have the same most likely token.
        delta_p: the prediction's probability of the next token minus the reference's.
            Where the next token is unknown, the reference's top token counts.
        surprisal: the prediction's negative log probability of the next token, in
            nats; NaN where that token is unknown.
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
        answer: the next token of each row; may be shorter or longer than ``n``.
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
    """Return natural log probabilities of logits, row by row, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _kld(p: Floats, q: Floats) -> Floats:
    weights = np.exp(p)
    # A token without weight adds nothing, whatever its other probability.
    ratio = np.subtract(p, q, where=weights > 0, out=np.zeros_like(p))
    # Rounding may push the sum for nearly equal distributions below 0.
    kld: Floats = (weights * ratio).sum(axis=-1)
    return kld.clip(min=0.0)
