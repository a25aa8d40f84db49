"""Reads statements."""

import csv
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ledger.money import parse_amount

COLUMNS = ("date", "payee", "category", "amount")


@dataclass(frozen=True)
class Entry:
    """One line of a statement; the amount is in cents."""

    day: date
    payee: str
    category: str
    amount: int


def read_entries(path):
    """Yield the entries of a CSV file in the order of its lines."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: columns missing: {', '.join(missing)}")
        for row in rows:
            yield Entry(
                day=date.fromisoformat(row["date"]),
                payee=row["payee"].strip(),
                category=row["category"].strip().lower(),
                amount=parse_amount(row["amount"]),
            )
