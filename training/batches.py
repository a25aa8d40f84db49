"""Training data for the bundled model, by step.

A batch depends on the seed and the step alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxlab.models.folder import find_model
from mlxlab.prompt import Tokens
from training.lessons import Lessons
from training.tasks import WORDS

__all__ = ["Batch", "Batches", "Phase"]

#: Recalled words always count. Of the other answer tokens and of the filler, only a
#: share counts, at a lower weight: a prediction costs more than all layers.
_FORM_SHARE, _FORM_WEIGHT = 0.15, 0.2
_FILLER_SHARE, _FILLER_WEIGHT = 0.05, 0.2


@dataclass(frozen=True, slots=True)
class Phase:
    """``steps`` batches of ``rows`` lessons of ``length`` tokens.

    Attributes:
        drills: number of rows that are drills; the others are dialogues.
    """

    length: int
    rows: int
    steps: int
    drills: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of ids, with the predictions that count and their weights.

    Attributes:
        ids: shape ``[rows, length + 1]``.
        places: flat positions in ``[rows * length]`` whose next id is predicted.
        weights: float32, one per place.
        words: one per place: whether the next id is a word that an answer recalls.
    """

    ids: Tokens
    places: NDArray[np.intp]
    weights: NDArray[np.float32]
    words: NDArray[np.bool_]


class Batches:
    """Makes batches.

    Args:
        seed: equal seeds give equal batches.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lessons = Lessons(held_out=False)
        folder = find_model()
        self._pad = folder.config["pad_token_id"]
        self._words = folder.tokenizer.convert_tokens_to_ids(list(WORDS))

    def batch(self, step: int, phase: Phase) -> Batch:
        """Return a batch of lessons, cut or padded to the phase's length."""
        shape = (phase.rows, phase.length + 1)
        ids = np.full(shape, self._pad, np.int32)
        answers = np.zeros(shape, bool)
        for i in range(phase.rows):
            make = self._lessons.drill if i < phase.drills else self._lessons.lesson
            lesson = make(f"{self._seed}-{step}-{i}", phase.length)
            length = min(len(lesson.ids), phase.length + 1)
            ids[i, :length] = lesson.ids[:length]
            for place in lesson.answers:
                answers[i, place] = True
        return self._chosen(ids, answers, np.random.default_rng((self._seed, step)))

    def _chosen(
        self, ids: Tokens, answers: NDArray[np.bool_], random: np.random.Generator
    ) -> Batch:
        wanted, inside = ids[:, 1:].ravel(), answers[:, 1:].ravel()
        words = inside & np.isin(wanted, self._words)
        drawn = random.random(len(wanted))
        form = inside & ~words & (drawn < _FORM_SHARE)
        filler = ~inside & (wanted != self._pad) & (drawn < _FILLER_SHARE)
        places = np.flatnonzero(words | form | filler)
        weights = sum(
            weight * kind[places] / max(kind.sum(), 1)
            for kind, weight in (
                (words, 1.0),
                (form, _FORM_WEIGHT),
                (filler, _FILLER_WEIGHT),
            )
        )
        return Batch(ids, places, np.asarray(weights, np.float32), words[places])
