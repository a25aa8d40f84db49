"""Sums up a household's bank statements by month and category."""
