"""Bytes as people write them: ``4GiB``."""

from __future__ import annotations

import re

__all__ = ["UNITS", "format_size", "parse_size"]

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?) ?(KiB|MiB|GiB|)")


def parse_size(text: str) -> int:
    """The number that ``64``, ``96KiB`` or ``1.5GiB`` stands for.

    Raises:
        ValueError: another form, or less than 1; the message says what is accepted.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if match and match[1].isdigit():
        size = int(match[1]) * UNITS[match[2]]  # floats are not exact for long ones
    if size < 1:
        raise ValueError(f"{text!r} is no size; give bytes, or 96KiB, 512MiB, 1.5GiB")
    return size


def format_size(size: int) -> str:
    """The shortest form that :func:`parse_size` reads as the same number."""
    for unit, factor in reversed(UNITS.items()):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
