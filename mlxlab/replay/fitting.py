"""Fits sums of a few terms, none negative, to measured seconds."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Matrix", "fit"]

Matrix: TypeAlias = NDArray[np.float64]

_ROUNDS = 20  # of reweighting; it settles in fewer


def fit(terms: Matrix, seconds: Matrix) -> list[float]:
    """Minimise relative errors by reweighted least squares, without negative terms."""
    found = np.zeros(terms.shape[1])
    if len(seconds) == 0:
        return found.tolist()
    shares = terms / seconds[:, None]
    weights = np.ones(len(seconds))
    for _ in range(_ROUNDS):
        found = _not_negative(shares * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(abs(shares @ found - 1), 1e-3))
    return found.tolist()


def _not_negative(terms: Matrix, target: Matrix) -> Matrix:
    """Solve least squares over the terms that are not negative."""
    used = np.ones(terms.shape[1], dtype=bool)
    scale = np.linalg.norm(terms, axis=0)
    scale[scale == 0] = 1
    while True:
        found = np.zeros(terms.shape[1])
        solved = np.linalg.lstsq(terms[:, used] / scale[used], target, rcond=None)[0]
        found[used] = solved / scale[used]
        if (found >= 0).all():
            return found
        used[int(np.argmin(found * scale))] = False
