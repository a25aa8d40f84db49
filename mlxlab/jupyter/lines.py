"""Reads the line of a magic, as a shell reads a command line."""

from __future__ import annotations

import re
import shlex

from IPython.core.error import UsageError

from mlxlab.files import expanded

__all__ = ["split_line"]


def split_line(line: str) -> list[str]:
    """Split a line into words; drop a comment and expand ``~``.

    Raises:
        UsageError: a quotation is not closed.
    """
    line = re.sub(r"(^|\s)#\s.*", "", line)  # people paste lines with comments
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{error}: {line}") from None
    return [re.sub(r"^(--[\w-]+=)?~(?=/|$)", _at_home, word) for word in words]


def _at_home(start: re.Match[str]) -> str:
    return f"{start[1] or ''}{expanded('~')}"
