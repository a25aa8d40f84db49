"""Sizes in bytes, written as ``4GiB``, and durations."""

from __future__ import annotations

import re
from typing import TypeAlias

from mlxlab.errors import ConfigError

__all__ = [
    "SIZE_FORM",
    "UNITS",
    "Size",
    "format_duration",
    "format_size",
    "parse_size",
    "read_size",
]

Size: TypeAlias = int | str
"""Bytes as a number, or text with a unit such as ``16GiB``."""

#: The form of sizes that users write, for messages.
SIZE_FORM = "a size with its unit, such as 16GiB"

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?) ?(KiB|MiB|GiB|)")


def parse_size(text: str) -> int:
    """Return the bytes that ``64``, ``96KiB`` or ``1.5GiB`` stand for.

    The inverse of :func:`format_size`. Arguments of users go through :func:`read_size`,
    which requires a unit.

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


def read_size(size: Size, name: str) -> int:
    """Return the bytes of an argument; text needs a unit, so that 16 means one thing.

    Args:
        size: bytes, or text such as ``16GiB``.
        name: of the argument, for the error.

    Raises:
        ConfigError: less than 1 byte, text without a unit, or another form.
    """
    written = size if isinstance(size, str) else str(int(size))
    accepted = f"give bytes as a number, or {SIZE_FORM}"
    if isinstance(size, str) and size.strip().isdecimal():
        raise ConfigError(f"{name} {size!r}: {accepted}")
    try:
        return parse_size(written)
    except ValueError:
        raise ConfigError(f"{name} {size!r}: {accepted}") from None


def format_size(size: int) -> str:
    """Return the shortest form that :func:`parse_size` reads as the same number."""
    for unit, factor in reversed(UNITS.items()):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def format_duration(seconds: float) -> str:
    """Return seconds in words that are read at a glance, such as ``5 min``."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes / 60:.1f} h"
