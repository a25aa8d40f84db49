"""Samplers that wrap another: forced beginnings, bounded thinking, barred ids.

They run inside mlx-lm's decode loop, which asks for token n+1 before token n is read.
So every value that depends on earlier tokens is computed lazily on the device. No
sampler here waits for a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import mlx.core as mx

__all__ = [
    "Barred",
    "BoundedThinking",
    "Forced",
    "LogitsProcessor",
    "Sampler",
    "greedy",
]

Sampler: TypeAlias = Callable[[mx.array], mx.array]
"""Maps log probabilities ``[1, vocabulary]`` to a token id ``[1]``."""

LogitsProcessor: TypeAlias = Callable[[mx.array, mx.array], mx.array]
"""Maps the ids so far and logits ``[1, vocabulary]`` to new logits."""

#: Thinking opens at the start of an answer, after white space at most.
_OPENS_WITHIN = 3


def greedy(logprobs: mx.array) -> mx.array:
    """Return the likeliest id."""
    return mx.argmax(logprobs, axis=-1)


class Forced:
    """Returns ``ids`` first, whatever the model predicts, then samples."""

    def __init__(self, ids: Sequence[int], sampler: Sampler) -> None:
        self.sampler = sampler
        self._ids = iter([int(i) for i in ids])

    def __call__(self, logprobs: mx.array) -> mx.array:
        forced = next(self._ids, None)
        return self.sampler(logprobs) if forced is None else mx.array([forced])


class Barred:
    """Never returns one of ``ids``."""

    def __init__(self, ids: Iterable[int], sampler: Sampler) -> None:
        self.sampler = sampler
        self.ids = tuple(sorted(ids))

    def __call__(self, logprobs: mx.array) -> mx.array:
        return self.sampler(_without(self.ids, logprobs))


class BoundedThinking:
    """Closes thinking when its budget is spent, so that an answer always follows.

    While thinking is open, ids that end the answer cannot be sampled. After ``budget``
    ids of thinking, the ids of ``closing`` follow.

    Args:
        sampler: chooses wherever no id is forced.
        start: id of the opening tag.
        closing: id of the closing tag, and the ids that the template puts after it.
        stop: ids that end an answer.
        budget: most ids between the tags; None for no limit.
        opened: whether the prompt ends inside thinking.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        start: int,
        closing: Sequence[int],
        stop: Iterable[int],
        budget: int | None,
        opened: bool,
    ) -> None:
        self.sampler = sampler
        self.start = start
        self.closing = tuple(closing)
        self.stop = tuple(sorted(stop))
        self.budget = budget
        self._open = mx.array(opened)
        self._spent = mx.array(0)
        self._to_close = mx.array(0)  # ids of ``closing`` that remain
        self._step = 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        barred = _without(self.stop, logprobs)
        token = self.sampler(mx.where(self._open, barred, logprobs))
        if self.budget is not None:
            token = self._closed(token, self.budget)
        self._open = self._open & (token[0] != self.closing[0])
        self._spent = self._spent + self._open
        if self._step < _OPENS_WITHIN:
            self._open = self._open | (token[0] == self.start)
        self._step += 1
        return token

    def _closed(self, token: mx.array, budget: int) -> mx.array:
        over = self._open & (self._spent >= budget)
        left = mx.where(over, len(self.closing), self._to_close)
        for n, id in enumerate(self.closing):
            token = mx.where(left == len(self.closing) - n, id, token)
        self._to_close = mx.maximum(left - 1, 0)
        return token


def _without(ids: Iterable[int], logprobs: mx.array) -> mx.array:
    """Bar ids, as far as the model has them: mlx writes behind the last one too."""
    known = [id for id in ids if 0 <= id < logprobs.shape[-1]]
    if not known:
        return logprobs
    barred = mx.array(logprobs)
    barred[..., mx.array(known)] = -float("inf")
    return barred
