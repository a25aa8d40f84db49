"""Lengths of time written as in ``1d 2h 30m``."""

import re

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
PART = re.compile(r"(\d+)\s*([dhms])")


def parse_span(text):
    """The seconds in a length of time."""
    parts = PART.findall(text)
    if not parts:
        raise ValueError(f"not a length of time: {text!r}")
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def format_span(seconds):
    """The shortest way to write a number of seconds."""
    parts = []
    for unit, size in UNITS.items():
        number, seconds = divmod(seconds, size)
        parts.append(f"{number}{unit}")
    return " ".join(parts)
