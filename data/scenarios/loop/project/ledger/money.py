"""Amounts of money as whole cents, read and written the German way."""

import re

AMOUNT = re.compile(r"^(?P<sign>[+-]?)(?P<whole>\d{1,3}(?:\.\d{3})*|\d+)(?:,(?P<cents>\d{2}))?$")


class AmountError(ValueError):
    """The text is no amount of money."""


def parse_amount(text):
    """Return the cents in an amount such as ``-1.234,56``.

    A missing fraction counts as zero cents. White space around the amount is
    ignored, white space inside is an error.
    """
    match = AMOUNT.match(text.strip())
    if match is None:
        raise AmountError(f"not an amount: {text!r}")
    whole = int(match["sign"] + match["whole"].replace(".", ""))
    cents = int(match["cents"] or 0)
    return whole * 100 + cents


def format_amount(cents, width=12):
    """Write cents as an amount, right-aligned."""
    sign = "-" if cents < 0 else ""
    whole, rest = divmod(abs(cents), 100)
    grouped = f"{whole:,}".replace(",", ".")
    return f"{sign}{grouped},{rest:02d}".rjust(width)
