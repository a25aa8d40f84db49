import unittest

from ledger.money import AmountError, format_amount, parse_amount


class ParseAmountTest(unittest.TestCase):
    def test_reads_whole_amounts(self):
        self.assertEqual(parse_amount("12"), 1200)

    def test_reads_cents(self):
        self.assertEqual(parse_amount("12,34"), 1234)

    def test_reads_groups_of_thousands(self):
        self.assertEqual(parse_amount("1.234.567,89"), 123456789)

    def test_reads_negative_amounts(self):
        self.assertEqual(parse_amount("-12,30"), -1230)

    def test_reads_negative_cents(self):
        self.assertEqual(parse_amount("-0,75"), -75)

    def test_refuses_wrong_groups(self):
        with self.assertRaises(AmountError):
            parse_amount("12.34,00")

    def test_refuses_inner_white_space(self):
        with self.assertRaises(AmountError):
            parse_amount("1 234,00")


class FormatAmountTest(unittest.TestCase):
    def test_writes_groups_of_thousands(self):
        self.assertEqual(format_amount(123456789, width=0), "1.234.567,89")

    def test_writes_negative_cents(self):
        self.assertEqual(format_amount(-75, width=0), "-0,75")

    def test_aligns_to_the_right(self):
        self.assertEqual(format_amount(100, width=8), "    1,00")


if __name__ == "__main__":
    unittest.main()
