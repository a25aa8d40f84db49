import unittest

from slug import slugify


class SlugifyTest(unittest.TestCase):
    def test_joins_words(self):
        self.assertEqual(slugify("Spring  cleaning, part 2!"), "spring-cleaning-part-2")

    def test_drops_accents(self):
        self.assertEqual(slugify("Crème brûlée"), "creme-brulee")

    def test_cuts_between_words(self):
        self.assertEqual(slugify("one two three", limit=9), "one-two")


if __name__ == "__main__":
    unittest.main()
