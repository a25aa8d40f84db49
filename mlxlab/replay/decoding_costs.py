"""Estimates the seconds of decoding, by terms fitted on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Self

import numpy as np
from pydantic import BaseModel, FiniteFloat

from mlxlab.replay.fitting import Matrix, fit

__all__ = ["Decoding", "Step"]


class Step(BaseModel, extra="forbid", frozen=True):
    """Measured steps of answers that decode together.

    Attributes:
        rows: answers.
        longest: tokens in front of the longest.
        step_s: seconds of a step.
        join_s: what the last of the answers added when it joined, its own first pass
            included; None if it was alone.
        leave_s: what the first that left added; None if it was alone.
    """

    rows: int
    longest: int
    step_s: FiniteFloat
    join_s: FiniteFloat | None = None
    leave_s: FiniteFloat | None = None


class Decoding(BaseModel, extra="forbid", frozen=True):
    """Seconds of steps, and of answers that join a batch or leave it.

    A batch holds its rows padded to the longest, and computes the padding too. Who
    joins or leaves has the whole batch copied.

    Attributes:
        step: seconds per step.
        row: per answer in it.
        token: per token in front of an answer that is alone.
        padded: per token of a padded batch.
        join: per answer that joins, and token of the padded batch then.
        leave: per answer that leaves, and token of the padded batch before.
    """

    step: FiniteFloat
    row: FiniteFloat
    token: FiniteFloat
    padded: FiniteFloat
    join: tuple[FiniteFloat, FiniteFloat] = (0.0, 0.0)
    leave: tuple[FiniteFloat, FiniteFloat] = (0.0, 0.0)

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Self:
        """Fit the terms to measured steps; of those of one size the median counts.

        Where only single answers were measured, the model cannot decode several
        together: a step of several then takes what each alone takes.
        """
        steps = _typical(steps)
        seconds = np.array([own.step_s for own in steps])
        together = [own for own in steps if own.rows > 1]
        if not together:
            row, token = fit(np.array([[1.0, own.longest] for own in steps]), seconds)
            return cls(step=0.0, row=row, token=token, padded=token)
        terms = [
            [1.0, n, longest * (n == 1), n * longest * (n > 1)]
            for n, longest in ((own.rows, own.longest) for own in steps)
        ]
        step, row, token, padded = fit(np.array(terms), seconds)
        alone = cls(step=step, row=row, token=token, padded=padded)
        joined, left = [], []
        for own in together:
            if own.join_s is not None:
                first_pass = alone.step_s(1, own.longest)
                joined.append((own, own.join_s - first_pass))
            if own.leave_s is not None:
                left.append((own, own.leave_s))
        changes = {"join": _fit_change(joined), "leave": _fit_change(left)}
        return alone.model_copy(update=changes)

    def step_s(self, rows: int, longest: int) -> float:
        """Return the seconds of a step that decodes a token of each of some answers.

        Args:
            rows: answers.
            longest: tokens in front of the longest.
        """
        return self.step + rows * self.row + longest * self.growth_s(rows)

    def growth_s(self, rows: int) -> float:
        """Return the seconds by which each step is longer than the one before."""
        return self.token if rows == 1 else self.padded * rows

    def join_s(self, rows: int, longest: int) -> float:
        """Return the seconds in which an answer joins others.

        Args:
            rows: answers, that one included.
            longest: tokens in front of the longest.
        """
        return self.join[0] + self.join[1] * rows * longest

    def leave_s(self, rows: int, longest: int) -> float:
        """Return the seconds in which an answer leaves others.

        Args:
            rows: answers, that one included.
            longest: tokens in front of the longest.
        """
        return self.leave[0] + self.leave[1] * rows * longest


def _typical(steps: Sequence[Step]) -> list[Step]:
    """Return one of each size, with the median seconds."""
    sizes: dict[tuple[int, int], list[Step]] = {}
    for own in steps:
        sizes.setdefault((own.rows, own.longest), []).append(own)
    found = []
    for same in sizes.values():
        medians = {
            name: median(values)
            for name in ("step_s", "join_s", "leave_s")
            if (values := [v for own in same if (v := getattr(own, name)) is not None])
        }
        found.append(same[0].model_copy(update=medians))
    return found


def _fit_change(measured: Sequence[tuple[Step, float]]) -> tuple[float, float]:
    # A change that took no measurable time has no relative error.
    found = [(own.rows * own.longest, s) for own, s in measured if s > 0]
    terms: Matrix = np.array([[1.0, padded] for padded, _ in found]).reshape(-1, 2)
    each, token = fit(terms, np.array([seconds for _, seconds in found]))
    return each, token
