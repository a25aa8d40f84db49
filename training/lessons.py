"""Dialogues as token ids, with the positions of their answers."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from mlxlab.models.folder import find_model
from mlxlab.prompt import Tokens
from mlxlab.rendering.renderer import Renderer
from training.tasks import WORDS, Kind, TaskWriter

__all__ = ["Lesson", "Lessons"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A dialogue.

    Attributes:
        ids: ids of all its turns, shape ``[n]``.
        answers: the positions of each answer's ids, its end of turn included.
        kinds: the kind of each answer; empty for a drill.
    """

    ids: Tokens
    answers: tuple[slice, ...]
    kinds: tuple[Kind, ...]


class Lessons:
    """Makes lessons for the bundled model's tokenizer.

    Args:
        held_out: see :class:`training.tasks.TaskWriter`.
    """

    #: Tokens of a setting: key, sign, value, newline.
    _LINE = 4

    def __init__(self, *, held_out: bool) -> None:
        self._writer = TaskWriter(held_out=held_out)
        self._renderer = Renderer(find_model(), ())
        encode = self._renderer.tokenizer.encode
        self._head = np.array(encode("<|im_start|>assistant\n"))
        (self._end,) = encode("<|im_end|>")

    def lesson(self, seed: str, tokens: int) -> Lesson:
        """Return a dialogue of about ``tokens`` tokens, decided by the seed."""
        tasks = self._writer.dialogue(seed, tokens)
        message = {"role": "assistant", "content": tasks[-1].answer}
        prompt, answer = self._renderer.render_exchange(tasks[-1].request, message)
        ids = prompt.extended(answer).tokens
        kinds = tuple(task.kind for task in tasks)
        return Lesson(ids, self._answers(ids), kinds)

    def drill(self, seed: str, tokens: int) -> Lesson:
        """Return a drill: the same settings repeatedly, in other orders.

        Its answers are the values of settings that occurred before.
        """
        random = Random(seed)
        count = random.randint(2, min(max(tokens // 12, 2), 48))
        keys = random.sample(WORDS, count)
        lines = [f"{key}={random.choice(WORDS)}\n" for key in keys]
        order = list(lines)
        while len(order) * self._LINE < tokens:
            order += random.sample(lines, count)
        ids = self._renderer.tokenizer.encode("".join(order))
        value = range(self._LINE * count + 2, len(ids), self._LINE)
        return Lesson(
            np.array(ids, np.int32), tuple(slice(i, i + 1) for i in value), ()
        )

    def _answers(self, ids: Tokens) -> tuple[slice, ...]:
        windows = np.lib.stride_tricks.sliding_window_view(ids, len(self._head))
        heads = np.flatnonzero((windows == self._head).all(axis=1))
        ends = np.flatnonzero(ids == self._end)
        starts = heads + len(self._head)
        stops = ends[np.searchsorted(ends, starts)] + 1
        return tuple(map(slice, starts.tolist(), stops.tolist()))
