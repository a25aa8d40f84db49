"""Totals by month and category."""

from collections import defaultdict

from ledger.money import format_amount


def totals(entries):
    """Map each month to the total of every category in it."""
    months = defaultdict(lambda: defaultdict(int))
    for entry in entries:
        months[entry.day.month][entry.category] += entry.amount
    return {month: dict(categories) for month, categories in sorted(months.items())}


def balance(categories):
    """Income less spending of one month."""
    return sum(categories.values())


def render(months):
    """Write the totals as a table, largest spending first."""
    lines = []
    for month, categories in months.items():
        lines.append(f"{month}")
        for name, amount in sorted(categories.items(), key=lambda pair: pair[1]):
            lines.append(f"  {name:<20}{format_amount(amount)}")
        lines.append(f"  {'balance':<20}{format_amount(balance(categories))}")
        lines.append("")
    return "\n".join(lines)
