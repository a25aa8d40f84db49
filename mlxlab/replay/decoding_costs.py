"""Estimates the seconds of decoding, by terms fitted on one machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, FiniteFloat

from mlxlab.replay.fitting import fit

__all__ = ["Step", "fit_decode"]


class Step(BaseModel, extra="forbid", frozen=True):
    """One measured step of decoding.

    Attributes:
        rows: answers that decoded together.
        context: tokens in front of them, all rows.
        step_s: seconds.
    """

    rows: int
    context: int
    step_s: FiniteFloat


def fit_decode(steps: Sequence[Step]) -> tuple[float, float, float]:
    """Return the seconds per step, answer in it, and token in front of these."""
    terms = np.array([[1.0, step.rows, step.context] for step in steps])
    step, row, token = fit(terms, np.array([step.step_s for step in steps]))
    return step, row, token
