import unittest

from table import parse_table, render_table

TEXT = """\
| name | size |
|------|-----:|
| oak | 12 |
| willow | 7 |
"""


class TableTest(unittest.TestCase):
    def test_reads_alignments(self):
        self.assertEqual(parse_table(TEXT)[1], ["left", "right"])

    def test_writes_aligned_columns(self):
        lines = render_table(*parse_table(TEXT)).splitlines()
        self.assertEqual(lines[2], "| oak    |   12 |")

    def test_keeps_an_escaped_bar_in_its_cell(self):
        header, _, _ = parse_table("| a \\| b | c |\n|---|---|\n")
        self.assertEqual(header, ["a | b", "c"])

    def test_fills_up_short_rows(self):
        table = render_table(["a", "b"], ["left", "left"], [["only"]])
        self.assertEqual(table.splitlines()[2], "| only |     |")


if __name__ == "__main__":
    unittest.main()
