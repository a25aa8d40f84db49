"""Finding tags in text that comes in pieces, and holding back white space.

Both give the same whatever the pieces. Knows nothing of what the tags mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Matcher", "Tail"]


class Matcher:
    """Finds the first of some strings: the earliest, then the longest.

    Args:
        patterns: the strings; empty ones are ignored.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = sorted({p for p in patterns if p}, key=len, reverse=True)
        self._regex = re.compile("|".join(map(re.escape, self._patterns)))
        self._first = {p[0] for p in self._patterns}
        self._held = ""

    def feed(self, text: str, final: bool = False) -> tuple[str, str | None, str]:
        """Look through more text.

        Args:
            text: what comes next.
            final: nothing comes after it, so nothing is held back.

        Returns:
            Text in which nothing was found; what was found behind it, if anything;
            the text behind that.
        """
        text, self._held = self._held + text, ""
        if not self._patterns:
            return text, None, ""
        found = self._regex.search(text)
        open_from = len(text) if final else self._first_open(text)
        # A match that may yet begin earlier or last longer has to wait.
        if found and found.start() < open_from:
            return text[: found.start()], found.group(), text[found.end() :]
        self._held = text[open_from:]
        return text[:open_from], None, ""

    def _first_open(self, text: str) -> int:
        """Where the longest end of ``text`` that a pattern goes on from begins."""
        for start in range(max(0, len(text) - len(self._patterns[0]) + 1), len(text)):
            if text[start] in self._first and self._is_open(text[start:]):
                return start
        return len(text)

    def _is_open(self, end: str) -> bool:
        return any(len(p) > len(end) and p.startswith(end) for p in self._patterns)


class Tail:
    """Lets text through and holds back the white space at its end.

    Attributes:
        started: something was let through.

    Args:
        space: characters to hold back; None for all white space.
    """

    def __init__(self, space: str | None = None) -> None:
        self.started = False
        self._space = space
        self._held: list[str] = []

    def feed(self, text: str) -> str:
        """What may be let through now."""
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
        """The white space behind what was let through."""
        return "".join(self._held)
