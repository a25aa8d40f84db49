"""Shows the difference between two texts in one line."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from enum import StrEnum

from mlxlab.traces.redaction import redacted

__all__ = ["TextShown", "describe_change", "shows_date"]

#: Characters of a line, and of the unchanged words around a change.
_LENGTH = 120
_AROUND = 24
#: difflib takes seconds beyond this many words, so longer texts show as replaced.
_MOST_WORDS = 1500

_DATE = re.compile(
    r"\b\d{4}-\d\d-\d\d\b|\btoday\b|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    re.IGNORECASE,
)


class TextShown(StrEnum):
    """How reports show prompt text: secrets replaced, in full, or without words."""

    REDACTED = "redacted"
    FULL = "full"
    NONE = "none"


def describe_change(old: str, new: str, shown: TextShown = TextShown.REDACTED) -> str:
    """Return ``…before [-gone-] {+new+} behind…``, about 120 characters, one line.

    Args:
        old: the earlier text; empty if there was none.
        new: the later text; empty if it is gone.
        shown: how to show the text. Secrets are replaced before the text is cut.
    """
    if shown is TextShown.NONE:
        return ""
    if shown is TextShown.REDACTED:
        masked = str(redacted(old)[0]), str(redacted(new)[0])
        if masked[0] == masked[1] and old != new:
            return "a secret changed"
        old, new = masked
    before, after = _words(old), _words(new)
    start, stop = _frame(before, after)
    lead, trail = " ".join(before[:start]), " ".join(before[len(before) - stop :])
    middle = _marked(
        before[start : len(before) - stop], after[start : len(after) - stop]
    )
    head, tail = _last(lead, _AROUND), _first(trail, _AROUND)
    room = _LENGTH - len(head) - len(tail)
    return " ".join(part for part in (head, _clipped(middle, room), tail) if part)


def shows_date(old: str, new: str) -> bool:
    """Return whether a date is among the words that differ."""
    before, after = _words(old), _words(new)
    start, stop = _frame(before, after)
    gone = " ".join(before[start : len(before) - stop])
    come = " ".join(after[start : len(after) - stop])
    return bool(_DATE.search(gone) or _DATE.search(come))


def _words(text: str) -> list[str]:
    """Split a text into words, without line breaks and control characters."""
    return "".join(c if c.isprintable() else " " for c in text).split()


def _frame(before: list[str], after: list[str]) -> tuple[int, int]:
    """Return the number of common words at the start and at the end."""
    least = min(len(before), len(after))
    start = 0
    while start < least and before[start] == after[start]:
        start += 1
    stop = 0
    while stop < least - start and before[-1 - stop] == after[-1 - stop]:
        stop += 1
    return start, stop


def _marked(before: list[str], after: list[str]) -> list[tuple[str, str]]:
    """Return runs of words, each with a sign: common, removed or added."""
    if max(len(before), len(after)) > _MOST_WORDS:
        return [("-", " ".join(before)), ("+", " ".join(after))]
    runs: list[tuple[str, str]] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            runs.append((" ", " ".join(before[i:j])))
            continue
        runs += [("-", " ".join(before[i:j]))] if j > i else []
        runs += [("+", " ".join(after[k:m]))] if m > k else []
    return runs


def _clipped(runs: list[tuple[str, str]], room: int) -> str:
    """Join the first runs that fit, with long ones cut in the middle."""
    shown: list[str] = []
    for sign, text in runs:
        if room <= 0:
            shown.append("…")
            break
        text = _squeezed(text, max(12, min(room, _LENGTH // 3)))
        shown.append({"-": f"[-{text}-]", "+": f"{{+{text}+}}"}.get(sign, text))
        room -= len(shown[-1]) + 1
    return " ".join(shown)


def _squeezed(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[len(text) - half :]}"


def _last(text: str, length: int) -> str:
    return text if len(text) <= length else f"…{text[len(text) - length :]}"


def _first(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
