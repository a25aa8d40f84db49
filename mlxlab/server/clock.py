"""The clock of a server's requests: Unix seconds that are never set back."""

from __future__ import annotations

import time

__all__ = ["now"]

_BEGUN = time.time() - time.monotonic()
#: Steps of a second. A simulation puts these times on another clock, and sums and
#: differences of whole steps are exact.
_STEPS = 1024


def now() -> float:
    """Return the time."""
    return round((_BEGUN + time.monotonic()) * _STEPS) / _STEPS
