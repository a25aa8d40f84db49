import unittest

from matrix import determinant


class DeterminantTest(unittest.TestCase):
    def test_of_a_triangle_is_the_product_of_its_diagonal(self):
        self.assertEqual(determinant([[2, 5], [0, 3]]), 6)

    def test_changes_sign_when_rows_are_swapped(self):
        self.assertEqual(determinant([[0, 1], [1, 0]]), -1)

    def test_of_dependent_rows_is_zero(self):
        self.assertEqual(determinant([[1, 2], [2, 4]]), 0)


if __name__ == "__main__":
    unittest.main()
