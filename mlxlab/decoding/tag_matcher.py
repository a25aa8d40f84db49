"""Finds tags in text that comes in pieces, and holds back trailing white space.

The results do not depend on the cuts between the pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["TagMatcher", "Tail"]


class TagMatcher:
    """Finds the earliest match of several strings; of two, the longer one.

    Args:
        patterns: the strings; empty ones are ignored.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = sorted({p for p in patterns if p}, key=len, reverse=True)
        self._regex = re.compile("|".join(map(re.escape, self._patterns)))
        self._first = {p[0] for p in self._patterns}
        self._held = ""

    def feed(self, text: str, final: bool = False) -> tuple[str, str | None, str]:
        """Search more text.

        Args:
            text: the next piece.
            final: whether this is the last piece, so that nothing is held back.

        Returns:
            The text before the match, the match if there is one, and the text after it.
        """
        text, self._held = self._held + text, ""
        if not self._patterns:
            return text, None, ""
        found = self._regex.search(text)
        open_from = len(text) if final else self._first_open(text)
        # A match that may still begin earlier or become longer has to wait.
        if found and found.start() < open_from:
            return text[: found.start()], found.group(), text[found.end() :]
        self._held = text[open_from:]
        return text[:open_from], None, ""

    def _first_open(self, text: str) -> int:
        """Return the start of the longest end of ``text`` that begins a pattern."""
        for start in range(max(0, len(text) - len(self._patterns[0]) + 1), len(text)):
            if text[start] in self._first and self._is_open(text[start:]):
                return start
        return len(text)

    def _is_open(self, end: str) -> bool:
        return any(len(p) > len(end) and p.startswith(end) for p in self._patterns)


class Tail:
    """Passes text on and holds back the white space at its end.

    Attributes:
        started: whether any text was passed on.

    Args:
        space: characters to hold back; None for all white space.
    """

    def __init__(self, space: str | None = None) -> None:
        self.started = False
        self._space = space
        self._held: list[str] = []

    def feed(self, text: str) -> str:
        """Add text and return the text that can be passed on now."""
        body = text.rstrip(self._space)
        if not body:
            self._held.append(text)
            return ""
        ready = "".join(self._held) + body
        self._held = [text[len(body) :]]
        self.started = True
        return ready

    @property
    def held(self) -> str:
        """The white space that is held back."""
        return "".join(self._held)
