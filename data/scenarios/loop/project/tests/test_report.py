import unittest
from datetime import date

from ledger.entries import Entry
from ledger.report import balance, render, totals


def entry(day, category, amount):
    return Entry(date.fromisoformat(day), "somebody", category, amount)


class TotalsTest(unittest.TestCase):
    def test_adds_up_a_category(self):
        entries = [entry("2025-03-01", "food", -1000), entry("2025-03-20", "food", -250)]
        (categories,) = totals(entries).values()
        self.assertEqual(categories, {"food": -1250})

    def test_keeps_the_same_month_of_two_years_apart(self):
        entries = [entry("2024-12-30", "rent", -80000), entry("2025-12-30", "rent", -82000)]
        self.assertEqual(
            totals(entries),
            {"2024-12": {"rent": -80000}, "2025-12": {"rent": -82000}},
        )

    def test_puts_months_in_order(self):
        entries = [entry("2025-02-01", "food", -1), entry("2024-11-01", "food", -1)]
        self.assertEqual(list(totals(entries)), ["2024-11", "2025-02"])


class RenderTest(unittest.TestCase):
    def test_ends_each_month_with_its_balance(self):
        table = render({"2025-01": {"pay": 300000, "rent": -80000}})
        self.assertIn("balance                 2.200,00", table)

    def test_balance_of_nothing_is_zero(self):
        self.assertEqual(balance({}), 0)


if __name__ == "__main__":
    unittest.main()
