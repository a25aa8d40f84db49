"""The pace of a server's turns, which a simulated server takes too."""

from __future__ import annotations

from typing import Final

#: Answers that run at once, by default.
ANSWERS: Final = 8
#: Seconds of decoding that running answers get for each second of a chunk.
DECODED_SHARE: Final = 0.2
#: Tokens a second of prefill, before any was measured.
PREFILL_RATE: Final = 1000.0
#: Share of the latest chunk in the measured rate.
LATEST_SHARE: Final = 0.3
#: A prompt waits for another that computes at least this many of its tokens.
SHARED_TOKENS: Final = 64
#: Tokens of the shortest chunk, since smaller ones leave the device idle between them,
#: and seconds of the longest: a cancelled request ends after the current chunk.
CHUNK_TOKENS: Final = 64
CHUNK_S: Final = 1.0
