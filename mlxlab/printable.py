"""Text of others on a terminal, which shows it and does not obey it."""

from __future__ import annotations

import re

__all__ = ["encodable", "printable"]

#: Control characters but the ends of lines and tabs, half surrogate pairs, and marks
#: that reorder what follows.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    r"""Return the text with escapes such as ``\x1b`` for what a terminal would obey."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def encodable(text: str) -> str:
    r"""Return the text with escapes such as ``\udcff`` for half surrogate pairs.

    Names of files and texts in JSON may hold them; UTF-8, and so tables, may not.
    """
    return text.encode(errors="backslashreplace").decode()
