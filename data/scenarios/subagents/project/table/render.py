"""Rows of cells to Markdown text with aligned columns."""

PAD = {"left": str.ljust, "right": str.rjust, "center": str.center}


def widths(header, rows):
    """The width of each column."""
    columns = zip(header, *rows)
    return [max(3, *map(len, column)) for column in columns]


def rule(width, alignment):
    """The cell below a header."""
    left = ":" if alignment == "center" else "-"
    right = ":" if alignment in ("center", "right") else "-"
    return left + "-" * (width - 2) + right


def render_row(cells, sizes, alignments):
    padded = [PAD[a](cell, size) for cell, size, a in zip(cells, sizes, alignments)]
    return "| " + " | ".join(padded) + " |"


def render_table(header, alignments, rows):
    """Write a table; every row has as many cells as the header."""
    sizes = widths(header, rows)
    lines = [render_row(header, sizes, alignments)]
    rules = [rule(size, a) for size, a in zip(sizes, alignments)]
    lines.append("| " + " | ".join(rules) + " |")
    lines += [render_row(row, sizes, alignments) for row in rows]
    return "\n".join(lines) + "\n"
