import unittest

from spans import format_span, parse_span


class SpansTest(unittest.TestCase):
    def test_adds_up_the_parts(self):
        self.assertEqual(parse_span("1h 30m"), 5400)

    def test_refuses_what_stands_between_the_parts(self):
        with self.assertRaises(ValueError):
            parse_span("1h and 30m")

    def test_leaves_out_empty_parts(self):
        self.assertEqual(format_span(5400), "1h 30m")

    def test_writes_zero(self):
        self.assertEqual(format_span(0), "0s")


if __name__ == "__main__":
    unittest.main()
