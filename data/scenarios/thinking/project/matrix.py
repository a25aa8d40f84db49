"""Determinants of small matrices, exactly."""

from fractions import Fraction


def determinant(rows):
    """The determinant of a square matrix, by elimination."""
    rows = [[Fraction(value) for value in row] for row in rows]
    size = len(rows)
    if any(len(row) != size for row in rows):
        raise ValueError("the matrix is not square")
    result = Fraction(1)
    for column in range(size):
        pivot = next((r for r in range(column, size) if rows[r][column]), None)
        if pivot is None:
            return Fraction(0)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        result *= rows[column][column]
        for below in range(column + 1, size):
            factor = rows[below][column] / rows[column][column]
            rows[below] = [b - factor * a for a, b in zip(rows[column], rows[below])]
    return result
