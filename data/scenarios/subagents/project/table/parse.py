"""Markdown text to rows of cells."""

import re

RULE = re.compile(r"^:?-{3,}:?$")


class TableError(ValueError):
    """The text holds no table."""


def split_row(line):
    """The cells of a line, without the outer bars."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def alignment(cell):
    """How a cell of the rule aligns its column: left, right or center."""
    if not RULE.match(cell):
        raise TableError(f"not a rule: {cell!r}")
    if cell.startswith(":") and cell.endswith(":"):
        return "center"
    return "right" if cell.endswith(":") else "left"


def parse_table(text):
    """Return header, alignments and rows of the first table in a text."""
    lines = [line for line in text.splitlines() if line.strip().startswith("|")]
    if len(lines) < 2:
        raise TableError("a table needs a header and a rule")
    header = split_row(lines[0])
    alignments = [alignment(cell) for cell in split_row(lines[1])]
    if len(header) != len(alignments):
        raise TableError("header and rule differ in length")
    return header, alignments, [split_row(line) for line in lines[2:]]
