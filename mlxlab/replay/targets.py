"""What replay can drive, and what it hears back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from mlxlab.replay.requests import Step

__all__ = ["Outcome", "Progress", "Target"]

Progress: TypeAlias = Callable[[int], object]
"""Called with the number of prompt tokens just taken in, from any thread."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one request cost on a target.

    Attributes:
        reused_tokens: prompt tokens restored from the cache.
        stored_bytes: keys and values held once the request is done.
        evicted: tokens that could be restored before the request and cannot be after.
        restore_s: seconds to find and restore them; None where time does not pass.
        prefill_s: seconds to compute the others; None likewise.
        ttft_s: seconds to the first token's logits; None likewise.
    """

    reused_tokens: int
    stored_bytes: int
    evicted: int
    restore_s: float | None = None
    prefill_s: float | None = None
    ttft_s: float | None = None


class Target(Protocol):
    """Takes a trace's steps in order."""

    def replay(self, step: Step) -> Outcome:
        """Answer ``step.prompt`` with ``step.answer`` and report the cost."""
        ...
