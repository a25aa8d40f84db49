"""What a simulated server took for its requests, one by one and together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

__all__ = ["Service", "Timing"]


@dataclass(slots=True)
class Timing:
    """One request on the clock; seconds since the replay began.

    Attributes:
        number: of the request.
        tokens: of the prompt.
        answer_tokens: of the answer.
        due: when it was sent.
        reused_tokens: restored tokens of the prompt.
        disk_tokens: those of them that came from disk.
        begun: when its plan was made.
        first: when its first token was there; None if its client left before.
        ended: when its answer ended.
    """

    number: int
    tokens: int
    answer_tokens: int
    due: float
    reused_tokens: int = 0
    disk_tokens: int = 0
    begun: float = 0.0
    first: float | None = None
    ended: float = 0.0

    @property
    def queue_s(self) -> float:
        """Seconds before its turn."""
        return self.begun - self.due

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token, the queue included."""
        return None if self.first is None else self.first - self.due

    @property
    def itl_s(self) -> float | None:
        """Mean seconds between two tokens of the answer."""
        if self.first is None or self.answer_tokens < 2:
            return None
        return (self.ended - self.first) / (self.answer_tokens - 1)

    @property
    def total_s(self) -> float:
        """Seconds to the end of the answer."""
        return self.ended - self.due


@dataclass(frozen=True, slots=True)
class Service:
    """All requests of a replay.

    Attributes:
        timings: in the order of their plans.
        busy_s: seconds in which the server computed.
        end_s: seconds until the last answer ended.
    """

    timings: Sequence[Timing]
    busy_s: float
    end_s: float

    def quantile(self, share: float, of: Callable[[Timing], float | None]) -> float:
        """Return a quantile over the requests that have a value; NaN without any."""
        values = [value for own in self.timings if (value := of(own)) is not None]
        return float(np.quantile(values, share)) if values else float("nan")

    @property
    def utilisation(self) -> float:
        """Share of the time in which the server computed."""
        return self.busy_s / self.end_s if self.end_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens of answers in a second."""
        answered = sum(own.answer_tokens for own in self.timings)
        return answered / self.end_s if self.end_s else 0.0

    @property
    def reused(self) -> float:
        """Share of the prompt tokens that were restored."""
        tokens = sum(own.tokens for own in self.timings)
        return sum(own.reused_tokens for own in self.timings) / tokens

    def good(self, ttft_s: float) -> float:
        """Return the share of requests whose first token came within a limit."""
        return fmean(
            own.first is not None and own.first - own.due <= ttft_s
            for own in self.timings
        )

    def goodput(self, ttft_s: float) -> float:
        """Return the requests in a second whose first token came within a limit."""
        met = self.good(ttft_s) * len(self.timings)
        return met / self.end_s if self.end_s else 0.0
